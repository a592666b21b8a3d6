#pragma once

#include "forge/base/dtype.h"
#include "forge/base/scalar.h"

namespace forge {

// The fp32 of the same value: exact.
inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }

}  // namespace forge
