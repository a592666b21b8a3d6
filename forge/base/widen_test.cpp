#include "forge/base/widen.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "forge/base/testing/bits.h"

namespace forge {
namespace {

using testing::bits_of;

float widened(std::uint32_t pattern) { return to_float(Float16{static_cast<std::uint16_t>(pattern)}); }

// The value of a finite fp16, from the definition of the format.
double value_of(std::uint32_t pattern) {
  int exponent = static_cast<int>(pattern >> 10 & 0x1F), fraction = static_cast<int>(pattern & 0x3FF);
  double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return pattern & 0x8000 ? -magnitude : magnitude;
}

TEST(Widen, Float16IsExactForEveryPattern) {
  for (std::uint32_t h = 0; h < 0x10000; ++h) {
    float x = widened(h);
    ASSERT_EQ(std::signbit(x), h >= 0x8000) << std::hex << h;
    if ((h & 0x7C00) != 0x7C00)
      ASSERT_EQ(x, value_of(h)) << std::hex << h;
    else
      ASSERT_EQ(bits_of(x) & 0x7FFFFFFF, 0x7F800000 | (h & 0x3FF) << 13) << "Inf and NaN: " << std::hex << h;
  }
}

TEST(Widen, Float16HasTheValuesThatOneKnows) {
  EXPECT_EQ(widened(0x3C00), 1.f);
  EXPECT_EQ(widened(0xC000), -2.f);
  EXPECT_EQ(widened(0x3555), 0x1.554p-2f) << "about 1/3";
  EXPECT_EQ(widened(0x7BFF), 65504.f);
  EXPECT_EQ(widened(0x0001), 0x1p-24f);
  EXPECT_EQ(bits_of(widened(0x8000)), bits_of(-0.f));
  EXPECT_EQ(widened(0xFC00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(widened(0x7C01)));
}

TEST(Widen, BFloat16IsTheUpperHalf) {
  for (std::uint32_t h = 0; h < 0x10000; ++h)
    ASSERT_EQ(bits_of(to_float(BFloat16{static_cast<std::uint16_t>(h)})), h << 16);
}

}  // namespace
}  // namespace forge
