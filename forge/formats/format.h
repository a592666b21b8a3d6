#pragma once

#include <cstdint>
#include <iterator>

#include "forge/base/matrix.h"
#include "forge/base/noise.h"
#include "forge/base/sign.h"

namespace forge {

// How a matrix of numbers is kept in memory. Arithmetic is fp32 whatever the format.
enum class Format : std::uint8_t { fp32, bf16, bf16_stochastic, bf16_plus16, bf16_plus8, int8, fp8 };

// Columns of a row that share one scale, in formats that have scales.
constexpr std::int64_t kBlockColumns = 32;

// What a format is, apart from its arithmetic. Some formats have a second matrix, `rest`: of the weight's shape, or
// one column for each block of kBlockColumns columns.
struct FormatInfo {
  const char* name;
  DType values;               // of numbers that may be negative
  DType not_negative_values;  // of numbers that may not
  bool has_rest;
  DType rest;
  std::int64_t columns_of_rest;  // columns of values for each column of the rest
  int random_bits;               // that a column is rounded with: 0, 8 or 16
  bool for_weights, for_moments;
};

constexpr FormatInfo kFormats[] = {
    {"fp32", DType::f32, DType::f32, false, {}, 1, 0, true, true},
    {"bf16", DType::bf16, DType::bf16, false, {}, 1, 0, true, true},
    {"bf16_stochastic", DType::bf16, DType::bf16, false, {}, 1, 16, true, true},
    {"bf16_plus16", DType::bf16, DType::bf16, true, DType::i16, 1, 0, true, false},
    {"bf16_plus8", DType::bf16, DType::bf16, true, DType::i8, 1, 0, true, false},
    {"int8", DType::i8, DType::u8, true, DType::bf16, kBlockColumns, 8, false, true},
    {"fp8", DType::f8, DType::f8, true, DType::bf16, kBlockColumns, 8, false, true},
};

constexpr int kFormatCount = std::size(kFormats);
constexpr bool is_known(Format format) { return static_cast<int>(format) < kFormatCount; }
constexpr const FormatInfo& info_of(Format format) { return kFormats[static_cast<std::size_t>(format)]; }
constexpr const char* name_of(Format format) { return info_of(format).name; }

// A matrix of numbers as a format keeps it; somebody else owns the memory.
struct Stored {
  Format format = Format::fp32;
  Matrix values;  // (rows, cols): the numbers, their upper halves or their codes
  Matrix rest;    // (rows, cols): the lower halves; or (rows, ⌈cols / 32⌉): the blocks' scales; or nothing
  Noise noise;    // of a weight, for its stochastic rounding and its moments'

  Stored() = default;
  // Numbers that are stored as they are: fp32 or bf16.
  Stored(const Matrix& m);  // NOLINT: a matrix of numbers is stored numbers
  Stored(Format f, const Matrix& v, const Matrix& r = {}, const Noise& n = {})
      : format(f), values(v), rest(r), noise(n) {}
};

// A piece of one row of a Stored: n columns from one that is a multiple of kBlockColumns.
struct Segment {
  void* values;
  void* rest;
  // 16 bits for each column, or the lower or the upper 8 of them; null: rounded to nearest.
  const std::uint16_t* noise;
  int noise_byte = 0;
};

inline Segment segment_at(const Stored& m, std::int64_t row, std::int64_t col) {
  const FormatInfo& info = info_of(m.format);
  return {m.values.at(row, col), info.has_rest ? m.rest.at(row, col / info.columns_of_rest) : nullptr, nullptr};
}

// Rows [row, row + rows) and columns [col, col + cols) of a stored matrix, in their place and with their noise; `col`
// is a multiple of kBlockColumns where the format has blocks.
Stored shard_of(const Stored& m, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols);

// Where a weight's noise has the random bits of one of its matrices: `which` is 0 for the weight itself, 1 + k for
// moment k. Two moments with 8 bits a column share one use.
struct NoisePlace {
  std::uint32_t use;
  int byte;
};
constexpr NoisePlace noise_place(Format format, int which) {
  if (info_of(format).random_bits == 8) return {static_cast<std::uint32_t>(1 + (which - 1) / 2), (which - 1) % 2};
  return {static_cast<std::uint32_t>(which), 0};
}

// Throws Error, opened by `who` and naming `what`, where m is not a (rows, cols) matrix in its format.
void check_stored(const char* who, const char* what, const Stored& m, std::int64_t rows, std::int64_t cols,
                  Sign sign = Sign::any);

}  // namespace forge
