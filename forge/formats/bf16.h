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
    return V::from_bits(V::Bits::load_upper16(p));
  }
  template <class V>
  FORGE_INLINE static void encode(V x, std::uint16_t* p) {
    using Bits = typename V::Bits;
    Bits u = x.bits();
    // Half an ulp, less one where the kept part is even: the carry rounds.
    Bits rounded = u + (Bits(0x7FFF) + (u.template shift_right<16>() & Bits(1)));
    if (all_numbers(x)) [[likely]]
      return rounded.store_upper16(p);
    // Adding would carry a NaN into −0; keep its sign and payload and set the quiet bit.
    select_number(x, rounded, u | Bits(0x00400000)).store_upper16(p);
  }
};

}  // namespace forge::formats
