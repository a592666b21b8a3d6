#pragma once

#include <cstdint>

#include "forge/base/inline.h"
#include "forge/formats/format.h"

namespace forge::formats {

// 32-bit floating point, stored as it is.
struct Fp32 {
  template <class V>
  FORGE_INLINE static void decode(const Segment& s, std::int64_t n, float* x) {
    for (std::int64_t j = 0; j < n; j += V::kLanes) V::load(static_cast<const float*>(s.values) + j).store(x + j);
  }
  template <class V>
  FORGE_INLINE static void encode(const float* x, std::int64_t n, const Segment& s) {
    for (std::int64_t j = 0; j < n; j += V::kLanes) V::load(x + j).store(static_cast<float*>(s.values) + j);
  }
};

}  // namespace forge::formats
