#pragma once

#include <cstdint>
#include <string>

namespace forge::cpu {

struct TileProblem {
  std::int64_t out, in;
  std::int64_t steps;  // of the chains: tokens of all Outer terms, or pairs of them
  int workers;
  int tile_rows, tile_cols;  // of the chain half
};

// How a weight is cut. It decides speed only: no choice changes a bit of the result.
struct TileConfig {
  std::int64_t strip_panels;  // panels of tile_rows rows of a strip of G
  std::int64_t strip_cols;    // its columns, a multiple of tile_cols
  std::int64_t task_panels;   // panels that one worker takes at a time, a multiple of strip_panels
  std::int64_t block_cols;    // columns whose X is packed at once, a multiple of strip_cols

  // Floats from row to row of a strip in memory: a line more than its columns, since the rows of a tile would share one
  // set of L1 if they were a multiple of 4 KiB apart.
  std::int64_t strip_stride() const { return strip_cols + 16; }

  bool operator==(const TileConfig&) const = default;
};

TileConfig choose_tile(const TileProblem& problem);
std::string to_string(const TileConfig& config);

}  // namespace forge::cpu
