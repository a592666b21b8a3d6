#include "forge/kernels/rounding.h"

#include <cmath>
#include <limits>

namespace forge {
namespace {

constexpr float kLargestBf16 = 0x1.FEp127f, kNearerToInfinity = 0x1.FFp127f;

bool is_finite(float x) { return std::abs(x) <= std::numeric_limits<float>::max(); }

bool is_saturated(float result, float after) {
  float stored = std::abs(after), size = std::abs(result);
  bool overflow = stored == std::numeric_limits<float>::infinity();
  bool clamped = (stored == kLargestBf16) & (size >= kNearerToInfinity);
  return is_finite(result) & (overflow | clamped);
}

}  // namespace

RoundingCount& RoundingCount::operator+=(const RoundingCount& other) {
  elements += other.elements;
  lost += other.lost;
  saturated += other.saturated;
  not_finite += other.not_finite;
  return *this;
}

RoundingCount RoundingCount::operator-(const RoundingCount& earlier) const {
  return {elements - earlier.elements, lost - earlier.lost, saturated - earlier.saturated,
          not_finite - earlier.not_finite};
}

void count_rounding(const float* before, const float* result, const float* after, std::int64_t n,
                    RoundingCount& count) {
  std::int32_t lost = 0, saturated = 0, not_finite = 0;  // as wide as the numbers: the loop is vectorized
  for (std::int64_t j = 0; j < n; ++j) {
    lost += (result[j] != before[j]) & (after[j] == before[j]);
    saturated += is_saturated(result[j], after[j]);
    not_finite += !is_finite(result[j]);
  }
  count += {n, lost, saturated, not_finite};
}

}  // namespace forge
