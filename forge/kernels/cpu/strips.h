#pragma once

#include <cstdint>

#include "forge/base/function_ref.h"
#include "forge/kernels/cpu/halves.h"

namespace forge::cpu {

// What becomes of finished segments of G: row `row`, columns [col, col + n), before the overall scale. A row's
// segments come in ascending order, begin at multiples of 32 columns, and are one worker's.
struct SegmentConsumer {
  // tile: to be run too, where it is not null; it may be run beside.
  FunctionRef<void(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, const Tile* tile)> consume;
  bool takes_tiles = false;  // otherwise `tile` is null
  std::int64_t columns = 0;  // of a segment, a multiple of 32; 0: as many as go well beside a tile
};

std::size_t strips_workspace_bytes(const Expression& G, int workers, const ChainHalf& chain);

// Visits every segment of G = Σ sᵢ · termᵢ once. shard > 0: columns [k · shard, (k + 1) · shard) are one worker's,
// which goes down their rows in pieces of kLinePiece columns, of which `shard` is a multiple.
void for_each_segment(const Expression& G, const Context& context, const SegmentConsumer& consumer, std::int64_t shard);

}  // namespace forge::cpu
