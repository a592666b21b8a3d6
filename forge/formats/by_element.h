#pragma once

#include <cstdint>

#include "forge/base/inline.h"
#include "forge/formats/format.h"

namespace forge::formats {

// The loops of a format F that codes elements one by one:
//   F::decode_at<V>(segment, j) → the numbers of V's columns from j on
//   F::encode_at(x, segment, j)   columns from j on ← x, a V::Wide
// n is a multiple of V::Wide's lanes.
template <class F>
struct ByElement {
  template <class V>
  FORGE_INLINE static void decode(const Segment& s, std::int64_t n, float* x) {
    for (std::int64_t j = 0; j < n; j += V::kLanes) F::template decode_at<V>(s, j).store(x + j);
  }
  template <class V>
  FORGE_INLINE static void encode(const float* x, std::int64_t n, const Segment& s) {
    for (std::int64_t j = 0; j < n; j += V::Wide::kLanes) F::encode_at(V::Wide::load(x + j), s, j);
  }
  // The kBlockColumns columns from j on.
  template <class V>
  FORGE_INLINE static void encode_block(const V* x, const Segment& s, std::int64_t j) {
    constexpr int kWide = V::Wide::kLanes;
    for (int i = 0; i < kBlockColumns; i += kWide) F::encode_at(V::Wide::of(x + i / V::kLanes), s, j + i);
  }
};

}  // namespace forge::formats
