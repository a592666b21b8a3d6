#pragma once

#include <cstdint>

#include "forge/base/inline.h"
#include "forge/formats/by_element.h"

namespace forge::formats {

// 32-bit floating point, stored as it is.
struct Fp32 : ByElement<Fp32> {
  template <class V>
  FORGE_INLINE static V decode_at(const Segment& s, std::int64_t j) {
    return V::load(static_cast<const float*>(s.values) + j);
  }
  template <class W>
  FORGE_INLINE static void encode_at(W x, const Segment& s, std::int64_t j) {
    x.store(static_cast<float*>(s.values) + j);
  }
};

}  // namespace forge::formats
