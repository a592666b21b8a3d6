#pragma once

#include <cstdint>

#include "forge/base/inline.h"
#include "forge/formats/bf16.h"

namespace forge::formats {

// An fp32 as two integers: the bf16 nearest to it, which is all that forward and backward see, and the signed
// distance of the bit patterns, which only updates read. Patterns of one sign are ordered as the numbers are and
// equally spaced within a binade, so the distance is the rounding error in units of bf16's last place.
//   u = bits(x), hi = (u + 0x8000) >> 16, lo = u − (hi << 16) ∈ [−0x8000, 0x7FFF], back: (hi << 16) + lo
// hi is rounded to nearest, ties away from zero. Lossless, NaN's payload excepted: it is quieted and cut.
struct Bf16Plus16 : ByElement<Bf16Plus16> {
  template <class V>
  FORGE_INLINE static V decode_at(const Segment& s, std::int64_t j) {
    using Bits = typename V::Bits;
    return V::from_bits(Bits::load_upper16(static_cast<const std::uint16_t*>(s.values) + j) +
                        Bits::load_int16(static_cast<const std::int16_t*>(s.rest) + j));
  }
  template <class W>
  FORGE_INLINE static void encode_at(W x, const Segment& s, std::int64_t j) {
    using Bits = typename W::Bits;
    Bits u = x.bits(), nan = quiet_nan(u) & Bits(0xFFFF0000);
    Bits high = select_number(x, (u + Bits(0x8000)) & Bits(0xFFFF0000), nan);
    high.store_upper16(static_cast<std::uint16_t*>(s.values) + j);
    (select_number(x, u, nan) - high).store_lower16(static_cast<std::uint16_t*>(s.rest) + j);
  }
};

// The same with 24 bits kept, rounded to nearest, ties to even: the error is at most 1/512 of bf16's last place.
//   v = round(u, 24 bits), hi = (v + 0x80) >> 8, lo = v − (hi << 8) ∈ [−0x80, 0x7F], back: ((hi << 8) + lo) << 8
struct Bf16Plus8 : ByElement<Bf16Plus8> {
  template <class V>
  FORGE_INLINE static V decode_at(const Segment& s, std::int64_t j) {
    using Bits = typename V::Bits;
    return V::from_bits(Bits::load_upper16(static_cast<const std::uint16_t*>(s.values) + j) +
                        Bits::load_int8(static_cast<const std::int8_t*>(s.rest) + j).template shift_left<8>());
  }
  template <class W>
  FORGE_INLINE static void encode_at(W x, const Segment& s, std::int64_t j) {
    using Bits = typename W::Bits;
    Bits u = x.bits(), nan = quiet_nan(u) & Bits(0xFFFF0000);
    Bits rounded = u + (Bits(0x7F) + (u.template shift_right<8>() & Bits(1)));
    Bits high = select_number(x, (rounded + Bits(0x8000)) & Bits(0xFFFF0000), nan);
    high.store_upper16(static_cast<std::uint16_t*>(s.values) + j);
    // The distance in units of 2⁸: an int in [−128, 127] once shifted with its sign.
    (select_number(x, rounded, nan) - high)
        .template shift_right_signed<8>()
        .store_int8(static_cast<std::int8_t*>(s.rest) + j);
  }
};

}  // namespace forge::formats
