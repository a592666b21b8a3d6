#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "forge/base/dtype.h"

namespace forge::testing {

// The nearest fp16, ties to even; an overflow is Inf. The library only reads fp16, tests have to write it.
inline Float16 to_float16(float x) {
  auto with_sign = [x](double magnitude) {
    return Float16{static_cast<std::uint16_t>((std::signbit(x) ? 0x8000 : 0) | static_cast<int>(magnitude))};
  };
  constexpr int kLeastExponent = -14;
  if (std::isnan(x)) return with_sign(0x7E00);
  if (std::abs(x) >= 65520) return with_sign(0x7C00);  // half an ulp above the largest
  int exponent = x == 0 ? kLeastExponent : std::max(std::ilogb(x), kLeastExponent);
  // In units of the last place: up to 2048, of which a normal number's leading 1024 counts the exponent up by one.
  double units = std::nearbyint(std::ldexp(std::abs(x), 10 - exponent));
  return with_sign(units + (exponent - kLeastExponent) * 1024.0);
}

}  // namespace forge::testing
