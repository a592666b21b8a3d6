#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/rounding.h"
#include "forge/rules/list.h"

namespace forge::cpu {

// Columns that are decoded, updated and encoded at a time, on the stack: 4 KiB for each matrix that is decoded and for
// each sum of a rule, 2 KiB for each use of random bits. Measured (Zen 4, 8 tokens), against 256 columns: AdamW takes
// 0.9 of the time, in bf16 as in bf16_stochastic with int8; NAdam, whose numbers are decoded to the stack, 1.0 and 0.9.
constexpr std::int64_t kRowBlock = 1024;

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
  Segment segment(std::int64_t row, std::int64_t col) const { return segment_at(stored_, row, col); }
  // Encodes what load or place gave into the segment from there on.
  void store(const Segment& segment, std::int64_t n, const float* x) const;
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

// The random bits of one block of columns.
class BlockNoise {
 public:
  BlockNoise(const NoiseSource& source, std::int64_t row, std::int64_t col, std::int64_t n)
      : source_(source), row_(row), col_(col), n_(n) {}
  // Made anew where this is not the use of the call before, which only happens once for a matrix. Valid as long as
  // this.
  const std::uint16_t* of(std::uint32_t use);

 private:
  const NoiseSource& source_;
  std::int64_t row_, col_, n_;
  std::uint32_t use_ = ~0u;
  int drawn_ = 0;
  std::uint16_t bits_[1 + kMaxMoments][kRowBlock];
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
  bool takes_tiles() const { return in_place_ && rule_takes_tiles_; }
  // How many columns it would like to have at a time; 0: any number.
  std::int64_t columns() const { return in_place_ ? 0 : kRowBlock; }
  // Whether whole blocks of columns go from memory to memory in one loop.
  bool is_one_loop() const { return run_stored_ != nullptr; }

 private:
  void update_block(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, double* lanes,
                    const Tile* tile) const;
  void update_stored(std::int64_t row, std::int64_t col, std::int64_t n, const float* g) const;
  void update_decoded(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, double* lanes,
                      const Tile* tile) const;
  // A segment of one of the stores, with its random bits.
  Segment segment(int which, std::int64_t row, std::int64_t col, BlockNoise& noise) const;
  void count(std::int64_t row, std::int64_t col, std::int64_t n, const BlockBefore& before,
             float* const* results) const;

  std::array<RowStore, 1 + kMaxMoments> stores_;  // of the weight and of its moments
  std::array<Format, 1 + kMaxMoments> formats_{};
  int n_stores_;
  RuleRun run_;
  StoredRun run_stored_ = nullptr;  // where these formats have one
  bool rule_takes_tiles_;
  void (*add_squares_)(double* lanes, const float* g, std::int64_t n, float scale);
  const RuleStep& rule_;
  bool in_place_;  // the rule's loop runs on what is stored
  bool direct_;    // and nothing else has to be done
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
