#pragma once

#include <cstdint>

namespace forge {

// What rounding does to one matrix, a weight or a moment, in updates. Of each element there are the number that was
// stored before, the rule's result in fp32, and the number that is stored afterwards, as it is decoded.
struct RoundingCount {
  std::int64_t elements = 0;
  // The result differs from what was stored, and what is stored has not changed.
  std::int64_t lost = 0;
  // The result is finite, and what is stored is an infinity, or the largest bf16 in place of a result that lies beyond
  // it by half its last place or more:
  //   bf16             from 0x1.FFp127 on: an infinity
  //   bf16_stochastic  from there on: the largest number
  //   bf16_plus8       half of its own last place below 2¹²⁸: an infinity
  //   int8, fp8        near 2¹²⁸, where the scale, which follows the block's largest and is rounded up, or a code's own
  //                    rounding takes it past that: an infinity
  //   fp32, bf16_plus16  never; of bf16_plus16, forward and backward see an infinity from 0x1.FFp127 on
  std::int64_t saturated = 0;
  // The result is not finite. In int8 and fp8 its whole block decodes to NaN, so that the next update counts all of it.
  std::int64_t not_finite = 0;

  RoundingCount& operator+=(const RoundingCount& other);
  // What was counted since.
  RoundingCount operator-(const RoundingCount& earlier) const;
  bool operator==(const RoundingCount&) const = default;
};

// Adds n elements to the count.
void count_rounding(const float* before, const float* result, const float* after, std::int64_t n, RoundingCount& count);

}  // namespace forge
