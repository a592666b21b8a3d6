#pragma once

#include <cstdint>

namespace forge::cpu {

// Rows of a tile for each instruction set, and its vectors of columns (multiply_tile.h says why).
constexpr int kTileRowsAvx2 = 6, kTileRowsAvx512 = 8, kTileRowsOther = 12;
constexpr int kTileVectors = 2;

// One tile of a strip of G: tile_rows × tile_cols chains of `steps` steps, each of a token or of two.
struct Tile {
  const float* a;  // steps × tile rows, packed
  const float* b;  // steps × tile cols, packed
  std::int64_t steps;
  float* c;  // the chains, rows `stride` floats apart
  std::int64_t stride;
  bool fresh;  // the chains start at −0, not at what c holds
  bool pairs;  // a and b have two bf16 in each word, the first token's in its upper half (pairs.h)
};

}  // namespace forge::cpu
