#pragma once

#include <string>

#include "forge/formats/bf16.h"
#include "forge/formats/bf16_split.h"
#include "forge/formats/format.h"
#include "forge/formats/fp32.h"
#include "forge/formats/fp8.h"
#include "forge/formats/int8.h"

namespace forge {

// The one place where a format becomes its arithmetic: calls f.template operator()<F>(), F with decode and encode.
template <class F>
FORGE_INLINE void with_format(Format format, Sign sign, F&& f) {
  bool any = sign == Sign::any;
  switch (format) {
    case Format::fp32:
      return f.template operator()<formats::Fp32>();
    case Format::bf16:
      return f.template operator()<formats::Bf16>();
    case Format::bf16_stochastic:
      return f.template operator()<formats::Bf16Stochastic>();
    case Format::bf16_plus16:
      return f.template operator()<formats::Bf16Plus16>();
    case Format::bf16_plus8:
      return f.template operator()<formats::Bf16Plus8>();
    case Format::int8:
      return any ? f.template operator()<formats::Int8<Sign::any>>()
                 : f.template operator()<formats::Int8<Sign::not_negative>>();
    case Format::fp8:
      return any ? f.template operator()<formats::Fp8<Sign::any>>()
                 : f.template operator()<formats::Fp8<Sign::not_negative>>();
  }
}

}  // namespace forge
