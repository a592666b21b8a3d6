#pragma once

#include <algorithm>
#include <cstdint>

#include "forge/base/function_ref.h"
#include "forge/base/integers.h"
#include "forge/base/matrix.h"
#include "forge/kernels/target.h"

// The two halves of every CPU kernel, one table of functions each per instruction set. They meet at the strip: a few
// rows of G by some hundred columns, in L1/L2. The chain knows no rule, the row operation knows no matrix product, so
// they are compiled apart and never as a product. strips.cpp drives them.
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

// One segment of one row: W, S ← Rule(W, S, scale · g). `step` is the rule's Step.
using RowUpdate = void (*)(void* w, void* const* s, const float* g, std::int64_t n, float scale, const void* step);

struct RowHalf {
  // By place in RuleList (this header names no rule: an instruction set compiles the rules for itself).
  RowUpdate (*update)(std::size_t rule, DType weight, DType state);
  // d[j] ← scale · g[j], j < n, rounded to the dtype.
  void (*store)(void* d, DType dtype, const float* g, std::int64_t n, float scale);
  // lanes[j mod 16] += (scale · g[j])², j < n; the segment begins at a column that is a multiple of 16.
  void (*add_squares)(double* lanes, const float* g, std::int64_t n, float scale);
};

const ChainHalf& chain_half(Target target);
const RowHalf& row_half(Target target);

}  // namespace forge::cpu
