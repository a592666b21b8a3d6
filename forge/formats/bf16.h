#pragma once

#include <cstdint>

#include "forge/base/dtype.h"
#include "forge/base/inline.h"

namespace forge::formats {

// bfloat16: the upper half of an fp32, rounded to nearest, ties to even. NaN stays NaN (quiet), an overflow is Inf.
struct Bf16 {
  using Storage = std::uint16_t;
  static constexpr DType kDType = DType::bf16;
  static constexpr const char* kName = "bf16";

  template <class V>
  FORGE_INLINE static V decode(const std::uint16_t* p) {
    return V::from_bits(V::Bits::load16(p).template shift_left<16>());
  }
  template <class V>
  FORGE_INLINE static void encode(V x, std::uint16_t* p) {
    using Bits = typename V::Bits;
    Bits u = x.bits();
    Bits high = u.template shift_right<16>();
    // Half an ulp, less one where the kept part is even: the carry rounds.
    Bits rounded = (u + Bits(0x7FFF) + (high & Bits(1))).template shift_right<16>();
    // Adding would carry a NaN into −0; keep its sign and payload and set the quiet bit.
    select_number(x, rounded, high | Bits(0x0040)).store16(p);
  }
};

}  // namespace forge::formats
