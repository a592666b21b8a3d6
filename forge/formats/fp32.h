#pragma once

#include "forge/base/dtype.h"
#include "forge/base/inline.h"

namespace forge::formats {

// 32-bit floating point, stored as it is.
struct Fp32 {
  using Storage = float;
  static constexpr DType kDType = DType::f32;
  static constexpr const char* kName = "fp32";

  template <class V>
  FORGE_INLINE static V decode(const float* p) {
    return V::load(p);
  }
  template <class V>
  FORGE_INLINE static void encode(V x, float* p) {
    x.store(p);
  }
};

}  // namespace forge::formats
