#pragma once

#include "forge/formats/blocks.h"

namespace forge::formats {

// OCP E4M3 without infinities (Micikevicius et al., arXiv 2209.05433): sign, 4 bits of exponent with bias 7, 3 of
// fraction; 448 is the largest, 2⁻⁹ the least.
struct E4M3Code {
  template <Sign>
  static constexpr float kLevels = 448;

  template <class V, Sign>
  FORGE_INLINE static V decode(const void* codes, std::int64_t j) {
    using Bits = typename V::Bits;
    Bits code = Bits::load_uint8(static_cast<const std::uint8_t*>(codes) + j);
    // With the other bias of the exponent, codes below 8, which are denormal, come out as 2⁻⁷ + c · 2⁻¹⁰.
    V number = V::from_bits((code & Bits(0x7F)).template shift_left<20>() + Bits((127 - 7) << 23));
    number = select(number < V(0x1p-6f), fma(V(2.f), number, V(-0x1p-6f)), number);
    return V::from_bits(number.bits() | (code & Bits(0x80)).template shift_left<24>());
  }

  template <class V, Sign>
  FORGE_INLINE static void encode(V y, const typename V::Bits* byte, void* codes, std::int64_t j) {
    using Bits = typename V::Bits;
    V size = abs(y), to_round = size;
    Bits u = size.bits();
    // What is added below the third bit of the fraction: half a unit, less one where it is even; or random bits.
    Bits below = Bits(0x7FFFF) + (u.template shift_right<20>() & Bits(1));
    if (byte) {
      below = byte->template shift_left<12>() + Bits(0x800);
      to_round = size + fma(V::from_int(*byte), V(0x1p-17f), V(0x1p-18f - 0x1p-10f));
    }
    Bits normal = (u + below).template shift_right<20>() - Bits((127 - 7) << 3);  // and the exponent's other bias
    // Denormal codes count 2⁻⁹, which is the last place around 1.5 · 2¹⁴.
    Bits denormal = (to_round + V(0x1.8p14f)).bits() - V(0x1.8p14f).bits();
    Bits magnitude = select(size < V(0x1p-6f), denormal, normal);
    (magnitude | (y.bits().template shift_right<24>() & Bits(0x80))).store_uint8(static_cast<std::uint8_t*>(codes) + j);
  }
};

template <Sign kSign>
using Fp8 = Blocks<E4M3Code, kSign>;

}  // namespace forge::formats
