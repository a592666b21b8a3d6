#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/rounding.h"
#include "forge/rules/list.h"

namespace forge::cpu {

// Columns that are decoded, updated and encoded at a time, on the stack and so in L1: 1 KiB for each matrix that is not
// fp32. Measured (AdamW in bf16, Zen 3): 64 columns 5.9 ns for 8 weights, 128 5.7, 256 5.5, 512 5.8.
constexpr std::int64_t kRowBlock = 256;

// A stored matrix as a row operation sees it.
class RowStore {
 public:
  RowStore() = default;
  RowStore(const Stored& stored, Sign sign, Target target, Extent extent = Extent::element);

  // n ≤ kRowBlock numbers from (row, col), col a multiple of kBlockColumns: where they are, if that is fp32, else
  // decoded. Of a row's one number, n copies; of columns' numbers, those of these columns.
  float* load(std::int64_t row, std::int64_t col, std::int64_t n, float* buffer) const;
  // The same without reading: what is stored does not matter.
  float* place(std::int64_t row, std::int64_t col, float* buffer) const;
  // Encodes what load or place gave. noise: as Segment has it.
  void store(std::int64_t row, std::int64_t col, std::int64_t n, const float* x, const std::uint16_t* noise = nullptr,
             int noise_byte = 0) const;
  // Asks for the memory of n columns that will be loaded soon.
  void prefetch(std::int64_t row, std::int64_t col, std::int64_t n) const;
  // Whether load and place give where the numbers are, for any n.
  bool in_place() const { return is_fp32() && extent_ == Extent::element; }

 private:
  bool is_fp32() const { return stored_.format == Format::fp32; }

  Stored stored_;
  Extent extent_ = Extent::element;
  Codec codec_ = {};
  SegmentLayout layout_ = {};
};

// What a weight's random bits are made of.
struct NoiseSource {
  Noise noise;
  std::int64_t in;
  void (*fill)(const Noise& noise, std::int64_t in, std::int64_t row, std::int64_t col, std::int64_t n,
               std::uint16_t* out);
};

// The random bits of one block of columns, made when they are first asked for.
class BlockNoise {
 public:
  BlockNoise(const NoiseSource& source, std::int64_t row, std::int64_t col, std::int64_t n)
      : source_(source), row_(row), col_(col), n_(n) {}
  const std::uint16_t* of(std::uint32_t use);

 private:
  const NoiseSource& source_;
  std::int64_t row_, col_, n_;
  std::uint32_t use_ = ~0u;
  std::uint16_t bits_[kRowBlock];  // of use_
};

// The old numbers of one block, kept where rounding is counted.
using BlockBefore = float[1 + kMaxMoments][kRowBlock];

// W, S ← Rule(W, S, scale · g), segment by segment.
class RowOperation {
 public:
  RowOperation(const Stored& W, std::span<const Stored> S, const RuleStep& rule, float scale, Target target,
               std::span<RoundingCount> rounding);
  // Columns [col, col + n) of a row, col a multiple of kBlockColumns. lanes: of the row, kNormLanes for each sum of the
  // rule, which grow. tile: of a chain, to be run too, where it is not null.
  void update(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, double* lanes,
              const Tile* tile) const;
  bool takes_tiles() const { return takes_tiles_; }

 private:
  void update_block(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, double* lanes,
                    const Tile* tile) const;
  void store(int which, std::int64_t row, std::int64_t col, std::int64_t n, const float* x, BlockNoise& noise) const;
  void count(std::int64_t row, std::int64_t col, std::int64_t n, const BlockBefore& before,
             float* const* results) const;

  std::array<RowStore, 1 + kMaxMoments> stores_;  // of the weight and of its moments
  std::array<Format, 1 + kMaxMoments> formats_{};
  int n_stores_;
  RuleRun run_;
  bool takes_tiles_;
  void (*add_squares_)(double* lanes, const float* g, std::int64_t n, float scale);
  const RuleStep& rule_;
  bool in_place_;  // the rule runs on what is stored
  float scale_;
  NoiseSource noise_;
  std::span<RoundingCount> rounding_;
};

// D ← scale · g, segment by segment.
class RowStorer {
 public:
  RowStorer(const Matrix& D, float scale, Target target);
  void store(std::int64_t row, std::int64_t col, std::int64_t n, const float* g) const;

 private:
  RowStore D_;
  float scale_;
  void (*scaled_)(const float* g, std::int64_t n, float scale, float* to);
};

}  // namespace forge::cpu
