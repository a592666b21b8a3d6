#pragma once

#include <cstdint>

#include "forge/base/inline.h"
#include "forge/formats/by_element.h"

namespace forge::formats {

// bfloat16: the upper half of an fp32. What follows is how the upper half is chosen.
struct Bf16Storage {
  template <class V>
  FORGE_INLINE static V decode_at(const Segment& s, std::int64_t j) {
    return V::from_bits(V::Bits::load_upper16(static_cast<const std::uint16_t*>(s.values) + j));
  }
};

// The upper half of a NaN: sign and payload stay, the quiet bit is set, so that no payload rounds to an infinity.
template <class Bits>
FORGE_INLINE Bits quiet_nan(Bits u) {
  return u | Bits(0x00400000);
}

// Rounded to nearest, ties to even. NaN stays NaN, an overflow is Inf.
struct Bf16 : Bf16Storage, ByElement<Bf16> {
  template <class W>
  FORGE_INLINE static void encode_at(W x, const Segment& s, std::int64_t j) {
    using Bits = typename W::Bits;
    auto* p = static_cast<std::uint16_t*>(s.values) + j;
    Bits u = x.bits();
    // Half an ulp, less one where the kept part is even: the carry rounds.
    Bits rounded = u + (Bits(0x7FFF) + (u.template shift_right<16>() & Bits(1)));
    if (all_numbers(x)) [[likely]]
      return rounded.store_upper16(p);
    // Adding would carry a NaN into −0.
    select_number(x, rounded, quiet_nan(u)).store_upper16(p);
  }
};

// Rounded up with the probability of what is cut off, so that the mean is the number: 16 random bits are added below
// the cut. An infinity is never made from a finite number, it is the largest one then; NaN stays NaN.
struct Bf16Stochastic : Bf16Storage, ByElement<Bf16Stochastic> {
  template <class W>
  FORGE_INLINE static void encode_at(W x, const Segment& s, std::int64_t j) {
    using Bits = typename W::Bits;
    if (!s.noise) return Bf16::encode_at(x, s, j);
    auto* p = static_cast<std::uint16_t*>(s.values) + j;
    Bits u = x.bits();
    Bits sum = u + Bits::load_lower16(s.noise + j);
    Bits back = sum - Bits(0x00010000);
    // Where the sum reached the pattern of an infinity, one upper half less is the largest number.
    Bits rounded = select_finite(W::from_bits(sum), sum, back);
    if (all_finite(x)) [[likely]]
      return rounded.store_upper16(p);
    select_finite(x, rounded, select_number(x, u, quiet_nan(u))).store_upper16(p);
  }
};

}  // namespace forge::formats
