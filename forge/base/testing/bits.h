#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

namespace forge::testing {

inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float from_bits(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// The same bits; a NaN equals every NaN (which operand's payload survives, the instruction decides, not IEEE).
inline bool same_number(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }
inline bool same_number(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b) || (std::isnan(a) && std::isnan(b));
}

// Equal element by element, and where not.
inline ::testing::AssertionResult same_numbers(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " numbers";
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!same_number(a[i], b[i]))
      return ::testing::AssertionFailure() << "number " << i << ": " << a[i] << " and " << b[i] << " (bits " << std::hex
                                           << bits_of(a[i]) << " and " << bits_of(b[i]) << ")";
  }
  return ::testing::AssertionSuccess();
}

// The distance from |x| to the next larger fp32 (of its binade).
inline double ulp(double x) {
  constexpr int kSmallestExponent = -149;
  if (x == 0) return std::ldexp(1.0, kSmallestExponent);
  return std::ldexp(1.0, std::max(std::ilogb(x) - 23, kSmallestExponent));
}

}  // namespace forge::testing
