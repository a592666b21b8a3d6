#pragma once

#include "forge/formats/blocks.h"

namespace forge::formats {

// Integers, evenly spaced: −127 to 127, or 0 to 255 where there is no sign. Symmetric: −x has the code −c.
struct IntegerCode {
  template <Sign kSign>
  static constexpr float kLevels = kSign == Sign::any ? 127 : 255;

  template <class V, Sign kSign>
  FORGE_INLINE static V decode(const void* codes, std::int64_t j) {
    if constexpr (kSign == Sign::any)
      return V::from_int(V::Bits::load_int8(static_cast<const std::int8_t*>(codes) + j));
    else
      return V::from_int(V::Bits::load_uint8(static_cast<const std::uint8_t*>(codes) + j));
  }
  template <class V, Sign kSign>
  FORGE_INLINE static void encode(V y, const typename V::Bits* byte, void* codes, std::int64_t j) {
    using Bits = typename V::Bits;
    V to_round = y;
    if (byte) {
      // Evenly in (−½, ½), for a negative number with the other sign, so that −x still has the code −c.
      V dither = fma(V::from_int(*byte), V(0x1p-8f), V(0x1p-9f - 0.5f));
      if constexpr (kSign == Sign::any) dither = V::from_bits(dither.bits() ^ (y.bits() & Bits(0x80000000)));
      to_round = y + dither;
    }
    // The last place of 1.5 · 2²³ is 1: the sum is rounded to an integer, which its lower half is.
    Bits rounded = (to_round + V(0x1.8p23f)).bits();
    if constexpr (kSign == Sign::any) {
      rounded.store_int8(static_cast<std::int8_t*>(codes) + j);
    } else {
      // What is above 0 stays so. A second moment that came back as 0 beside a first one that did not would be no
      // denominator: single updates of several hundred times lr were seen.
      Bits least = V(0x1.8p23f).bits() + Bits(1);
      max(rounded, select(V(0.f) < y, least, rounded)).store_uint8(static_cast<std::uint8_t*>(codes) + j);
    }
  }
};

template <Sign kSign>
using Int8 = Blocks<IntegerCode, kSign>;

}  // namespace forge::formats
