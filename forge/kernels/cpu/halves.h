#pragma once

#include <cstdint>

#include "forge/base/matrix.h"
#include "forge/formats/format.h"
#include "forge/kernels/cpu/tile.h"
#include "forge/kernels/rule_table.h"
#include "forge/kernels/target.h"

// What every CPU kernel is made of, one table of functions each per instruction set. The chain makes strips of G, a few
// rows by some hundred columns, in L1/L2 (strips.cpp drives it); the row operation consumes them (row_operation.h):
// formats decode, the rule runs on fp32, formats encode. Formats know neither of the others, so they are compiled
// apart; a rule can run a tile of the chain beside itself, whatever is in it (multiply_tile.h). Of the rules that most
// weights are trained with, the three steps are one loop over what is stored.
namespace forge::cpu {

struct ChainHalf {
  int tile_rows;
  int tile_cols;
  // Packs all rows (tokens) of m, columns [col, col + cols), into panels of tile_rows (tile_cols) columns: panel p is
  // rows × width at out + p · panel_stride, widened to fp32, times scale, the last panel filled up with zeros.
  void (*pack_a)(const ConstMatrix& m, float scale, std::int64_t col, std::int64_t cols, float* out,
                 std::int64_t panel_stride);
  void (*pack_b)(const ConstMatrix& m, float scale, std::int64_t col, std::int64_t cols, float* out,
                 std::int64_t panel_stride);
  // The same of a bf16 matrix, two tokens in each word, ceil(rows / 2) × width a panel: the first in the upper half,
  // and behind a last one alone what adds nothing: in pack_a zeros, in pack_b −0. Where has_pairs().
  void (*pack_a_pairs)(const ConstMatrix& m, std::int64_t col, std::int64_t cols, float* out,
                       std::int64_t panel_stride);
  void (*pack_b_pairs)(const ConstMatrix& m, std::int64_t col, std::int64_t cols, float* out,
                       std::int64_t panel_stride);
  // Whether this machine multiplies pairs, step by step as fma does.
  bool (*has_pairs)();
  // Continues the tile's chains.
  void (*multiply)(const Tile& tile);
  // strip[j] ← fma(scale, x[j], strip[j]), j < n: a row of a Dense or Rows term.
  void (*add_row)(const void* x, DType dtype, float scale, float* strip, std::int64_t n);
};

struct RuleHalf {
  // Null for a rule that is not of the list.
  RuleRun (*rule)(const RuleInfo& rule);
  // Whether the loops take a tile along.
  bool takes_tiles;
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

// W, S ← Rule(W, S, scale · g) over columns as they are stored: n, a multiple of kBlockColumns, from another such on.
struct StoredWork {
  Segment w;
  const Segment* s;
  const float* g;
  std::int64_t n;
  float scale;
  const void* step;    // the rule's Step
  std::int64_t ahead;  // as RuleWork has it, not 0
};
using StoredRun = void (*)(const StoredWork& work);

struct StoredHalf {
  // For a weight and moments of one format each; null where a rule goes by the loops of codecs and its own.
  StoredRun (*find)(const RuleInfo& rule, Format weight, Format state);
};

const ChainHalf& chain_half(Target target);
const RuleHalf& rule_half(Target target);
const FormatHalf& format_half(Target target);
const StoredHalf& stored_half(Target target);

}  // namespace forge::cpu
