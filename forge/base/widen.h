#pragma once

#include <bit>
#include <cstdint>

#include "forge/base/dtype.h"

namespace forge {

// The fp32 of the same value: exact for every pattern, a NaN's payload included. Loops over these are vectorised by the
// compiler. Denormals must be kept (kernels/float_environment.h).
constexpr float to_float(float x) { return x; }
constexpr float to_float(BFloat16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
constexpr float to_float(Float16 x) {
  // Moved to fp32's fields, exponent and fraction are 2⁻¹¹² of the value (biases 15 and 127): a product with a power of
  // two, which also makes a denormal normal. Inf and NaN only need the largest exponent instead.
  std::uint32_t sign = (x.bits & 0x8000u) << 16, fields = (x.bits & 0x7FFFu) << 13;
  std::uint32_t scaled = std::bit_cast<std::uint32_t>(std::bit_cast<float>(fields) * 0x1p112f);
  std::uint32_t largest = (x.bits & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0;
  return std::bit_cast<float>(sign | scaled | largest);
}

}  // namespace forge
