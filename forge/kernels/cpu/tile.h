#pragma once

#include <cstdint>

namespace forge::cpu {

// Rows of a tile where an instruction set has 16 vector registers and where it has 32 (multiply_tile.h says why).
constexpr int kTileRowsOf16 = 6, kTileRowsOf32 = 8;

// One tile of a strip of G: tile_rows × tile_cols chains over `tokens` tokens.
struct Tile {
  const float* a;  // tokens × tile rows, packed
  const float* b;  // tokens × tile cols, packed
  std::int64_t tokens;
  float* c;  // the chains, rows `stride` floats apart
  std::int64_t stride;
  bool fresh;  // the chains start at −0, not at what c holds
};

}  // namespace forge::cpu
