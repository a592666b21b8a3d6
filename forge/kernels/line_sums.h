#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "forge/base/integers.h"
#include "forge/kernels/target.h"

namespace forge {

// The fp64 sums of the squares of G's fp32 elements: of_rows[r] over row r, (out); of_columns[c] over column c, (in).
// Both are overwritten. Their bits are fixed by the shape and G's bits alone, as those of sum_squares are.
// Throws Error where shapes or the workspace do not fit.
void sum_squares_of_lines(const Expression& G, std::span<double> of_rows, std::span<double> of_columns,
                          const Context& context);

// The order of the sums. A column adds its squares from top to bottom. A row adds pieces of kLinePiece columns, each in
// the order of norm_lanes.h, from left to right within a shard of columns, and then its shards from left to right: a
// worker has a shard, and goes down its rows. There are at most kLineShards of them.
constexpr std::int64_t kLinePiece = 256;
constexpr std::int64_t kLineShards = 32;

// A multiple of kLinePiece.
constexpr std::int64_t columns_of_line_shard(std::int64_t in) {
  return std::max(round_up(ceil_div(in, kLineShards), kLinePiece), kLinePiece);
}

}  // namespace forge
