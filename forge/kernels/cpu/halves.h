#pragma once

#include <algorithm>
#include <cstdint>

#include "forge/base/function_ref.h"
#include "forge/base/integers.h"
#include "forge/base/matrix.h"
#include "forge/formats/format.h"
#include "forge/kernels/rule_table.h"
#include "forge/kernels/target.h"

// What every CPU kernel is made of, one table of functions each per instruction set. The chain makes strips of G, a few
// rows by some hundred columns, in L1/L2 (strips.cpp drives it); the row operation consumes them (row_operation.h):
// formats decode, the rule runs on fp32, formats encode. None knows the others, so they are compiled apart and never as
// a product.
namespace forge::cpu {

// Some panels of rows times some panels of columns.
struct StripProduct {
  const float* a;  // row panels of K × tile rows, packed, `a_panel` floats apart
  std::int64_t a_panel;
  std::int64_t row_panels;
  const float* b;  // column panels of K × tile cols, packed, `b_panel` floats apart
  std::int64_t b_panel;
  std::int64_t col_panels;
  std::int64_t K;  // tokens
  float* strip;    // (row_panels · tile rows) × (col_panels · tile cols)
  std::int64_t stride;
  bool fresh;  // the chains start at −0, not at what the strip holds
};

struct ChainHalf {
  int tile_rows;
  int tile_cols;
  // Packs all rows (tokens) of m, columns [col, col + cols), into panels of tile_rows (tile_cols) columns: panel p is
  // rows × width at out + p · panel_stride, widened to fp32, times scale, the last panel filled up with zeros.
  void (*pack_a)(const ConstMatrix& m, float scale, std::int64_t col, std::int64_t cols, float* out,
                 std::int64_t panel_stride);
  void (*pack_b)(const ConstMatrix& m, float scale, std::int64_t col, std::int64_t cols, float* out,
                 std::int64_t panel_stride);
  // Continues each element's chain over K tokens. Calls `pause` product_pauses() times, evenly: the caller may issue
  // prefetches there.
  void (*multiply)(const StripProduct& product, FunctionRef<void()> pause);
  // strip[j] ← fma(scale, x[j], strip[j]), j < n: a row of a Dense or Rows term.
  void (*add_row)(const void* x, DType dtype, float scale, float* strip, std::int64_t n);
};

// Tokens between two stores of the accumulators: a panel of A (6 rows: 12 KiB, 12 rows: 24 KiB) stays in L1 while the
// panels of B stream by.
constexpr std::int64_t kTokenBlock = 512;

// Tokens × tiles between two pauses: about 800 cycles at two FMAs a cycle, so that a pause (a call and its prefetches)
// costs little and the prefetches come in no burst that fills the queue of outstanding misses.
constexpr std::int64_t kPauseTokens = 128;

inline std::int64_t tiles_between_pauses(std::int64_t tokens) {
  return std::max<std::int64_t>(kPauseTokens / std::max<std::int64_t>(tokens, 1), 1);
}

// How often `multiply` pauses for one run of K tokens.
inline std::int64_t product_pauses(std::int64_t K, std::int64_t tiles) {
  std::int64_t tokens = std::min(K, kTokenBlock), blocks = ceil_div(K, kTokenBlock);
  return blocks * (tiles / tiles_between_pauses(tokens));
}

struct RuleHalf {
  // Null for a rule that is not of the list.
  RuleRun (*rule)(const RuleInfo& rule);
  // to[j] ← scale · g[j], j < n.
  void (*scaled)(const float* g, std::int64_t n, float scale, float* to);
};

// The bytes of one column in the two parts of a Segment.
struct SegmentLayout {
  std::size_t value_bytes, rest_bytes;
  std::int64_t columns_of_rest;
};

struct Codec {
  // x[j] ← column j, j < n.
  void (*decode)(const Segment& s, const SegmentLayout& layout, std::int64_t n, float* x);
  // Column j ← x[j], j < n.
  void (*encode)(const float* x, const SegmentLayout& layout, std::int64_t n, const Segment& s);
};

struct FormatHalf {
  Codec (*codec)(Format format, Sign sign);
  // out[j] ← the random bits of (row, col + j), j < n (formats/philox.h).
  void (*noise)(const Noise& noise, std::int64_t in, std::int64_t row, std::int64_t col, std::int64_t n,
                std::uint16_t* out);
  // lanes[j mod 16] += (scale · g[j])², j < n; the segment begins at a column that is a multiple of 16.
  void (*add_squares)(double* lanes, const float* g, std::int64_t n, float scale);
  // sums[j] += (scale · g[j])², j < n.
  void (*add_squares_of_columns)(double* sums, const float* g, std::int64_t n, float scale);
};

const ChainHalf& chain_half(Target target);
const RuleHalf& rule_half(Target target);
const FormatHalf& format_half(Target target);

}  // namespace forge::cpu
