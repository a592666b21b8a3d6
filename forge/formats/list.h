#pragma once

#include <type_traits>

#include "forge/formats/bf16.h"
#include "forge/formats/bf16_split.h"
#include "forge/formats/format.h"
#include "forge/formats/fp32.h"
#include "forge/formats/fp8.h"
#include "forge/formats/int8.h"

namespace forge {

namespace formats {
template <Format kFormat, Sign kSign>
struct Find;
template <Sign kSign>
struct Find<Format::fp32, kSign> : std::type_identity<Fp32> {};
template <Sign kSign>
struct Find<Format::bf16, kSign> : std::type_identity<Bf16> {};
template <Sign kSign>
struct Find<Format::bf16_stochastic, kSign> : std::type_identity<Bf16Stochastic> {};
template <Sign kSign>
struct Find<Format::bf16_plus16, kSign> : std::type_identity<Bf16Plus16> {};
template <Sign kSign>
struct Find<Format::bf16_plus8, kSign> : std::type_identity<Bf16Plus8> {};
template <Sign kSign>
struct Find<Format::int8, kSign> : std::type_identity<Int8<kSign>> {};
template <Sign kSign>
struct Find<Format::fp8, kSign> : std::type_identity<Fp8<kSign>> {};
}  // namespace formats

// The one place where a format becomes its arithmetic: a type with decode and encode, for rows, and with decode_at and
// encode_block, for registers.
template <Format kFormat, Sign kSign>
using FormatOf = typename formats::Find<kFormat, kSign>::type;

// The same where the format is known when it runs: calls f.template operator()<F>().
template <class F>
FORGE_INLINE void with_format(Format format, Sign sign, F&& f) {
  constexpr Sign kAny = Sign::any, kNotNegative = Sign::not_negative;
  bool any = sign == kAny;
  switch (format) {
    case Format::fp32:
      return f.template operator()<FormatOf<Format::fp32, kAny>>();
    case Format::bf16:
      return f.template operator()<FormatOf<Format::bf16, kAny>>();
    case Format::bf16_stochastic:
      return f.template operator()<FormatOf<Format::bf16_stochastic, kAny>>();
    case Format::bf16_plus16:
      return f.template operator()<FormatOf<Format::bf16_plus16, kAny>>();
    case Format::bf16_plus8:
      return f.template operator()<FormatOf<Format::bf16_plus8, kAny>>();
    case Format::int8:
      return any ? f.template operator()<FormatOf<Format::int8, kAny>>()
                 : f.template operator()<FormatOf<Format::int8, kNotNegative>>();
    case Format::fp8:
      return any ? f.template operator()<FormatOf<Format::fp8, kAny>>()
                 : f.template operator()<FormatOf<Format::fp8, kNotNegative>>();
  }
}

}  // namespace forge
