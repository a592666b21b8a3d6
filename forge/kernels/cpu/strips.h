#pragma once

#include <cstdint>

#include "forge/base/function_ref.h"
#include "forge/kernels/cpu/halves.h"

namespace forge::cpu {

// What becomes of finished segments of G: row `row`, columns [col, col + n), before the overall scale. A row's
// segments come in ascending order, begin at multiples of 16 columns, and are one worker's; `touch` announces a
// segment about one strip ahead, so that the memory which `consume` will need can be fetched meanwhile.
struct SegmentConsumer {
  FunctionRef<void(std::int64_t row, std::int64_t col, std::int64_t n, const float* g)> consume;
  FunctionRef<void(std::int64_t row, std::int64_t col, std::int64_t n)> touch;
};

std::size_t strips_workspace_bytes(const Expression& G, int workers, const ChainHalf& chain);

// Visits every segment of G = Σ sᵢ · termᵢ once. shard > 0: columns [k · shard, (k + 1) · shard) are one worker's,
// which goes down their rows in pieces of kSegmentColumns columns, of which `shard` is a multiple.
void for_each_segment(const Expression& G, const Context& context, const SegmentConsumer& consumer, std::int64_t shard);

// The columns of a segment, but for a row's last: 48 lines of fp32 W, m and v are what a worker prefetches meanwhile.
constexpr std::int64_t kSegmentColumns = 256;

}  // namespace forge::cpu
