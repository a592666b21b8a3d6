#include "forge/formats/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"
#include "forge/formats/list.h"

namespace forge::formats {
namespace {

using testing::from_bits;

std::uint16_t encode(float x) {
  std::uint16_t bits = 0;
  Bf16::encode_at(Scalar(x), {&bits, nullptr, nullptr}, 0);
  return bits;
}
float decode(std::uint16_t bits) {
  float x = 0;
  Bf16::decode<Scalar>({&bits, nullptr, nullptr}, 1, &x);
  return x;
}

// The value of a finite bf16 magnitude, or of the first one beyond: from the definition of the format.
double value_of(unsigned magnitude) {
  int exponent = static_cast<int>(magnitude >> 7);
  double fraction = (magnitude & 0x7F) / 128.0;
  return exponent == 0 ? std::ldexp(fraction, -126) : std::ldexp(1 + fraction, exponent - 127);
}

// Round to nearest, ties to even, by looking for the nearest of the two neighbours: no integer trick.
std::uint16_t nearest(float x) {
  std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  double magnitude = std::abs(static_cast<double>(x));
  if (std::isinf(x)) return static_cast<std::uint16_t>(sign | 0x7F80);
  unsigned low = 0, high = 0x7F80;  // 0x7F80: Inf, one step beyond the largest
  while (high - low > 1) {
    unsigned middle = (low + high) / 2;
    (value_of(middle) <= magnitude ? low : high) = middle;
  }
  double below = magnitude - value_of(low), above = value_of(high) - magnitude;
  bool up = above < below || (above == below && low % 2 == 1);
  return static_cast<std::uint16_t>(sign | (up ? high : low));
}

TEST(Bf16, KeepsEveryPatternThatItHas) {
  for (std::uint32_t h = 0; h < 0x10000; ++h) {
    auto bits = static_cast<std::uint16_t>(h);
    float x = decode(bits);
    ASSERT_EQ(testing::bits_of(x), h << 16) << "decoding widens";
    ASSERT_EQ(encode(x), std::isnan(x) ? (h | 0x40) : h) << std::hex << h;
  }
}

TEST(Bf16, RoundsToNearestTiesToEven) {
  testing::Random random(1);
  for (std::uint32_t h = 0; h < 0x10000; ++h) {
    auto any = [&] { return static_cast<std::uint32_t>(random.below(0x10000)); };
    for (std::uint32_t low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu, any(), any(), any()}) {
      float x = from_bits(h << 16 | low);
      if (std::isnan(x)) continue;
      ASSERT_EQ(encode(x), nearest(x)) << std::hex << (h << 16 | low);
    }
  }
}

TEST(Bf16, NaNStaysAQuietNaNOfItsSign) {
  testing::Random random(2);
  for (int i = 0; i < 100000; ++i) {
    std::uint32_t payload = static_cast<std::uint32_t>(1 + random.below(0x7FFFFF)), sign = i % 2 ? 0x80000000u : 0;
    for (std::uint32_t u : {sign | 0x7F800000u | payload, sign | 0x7F800001u, sign | 0x7FFFFFFFu, sign | 0x7F80FFFFu}) {
      std::uint16_t h = encode(from_bits(u));
      ASSERT_EQ(h & 0x7FC0, 0x7FC0) << std::hex << u;
      ASSERT_EQ(h >> 15, u >> 31) << std::hex << u;
    }
  }
}

TEST(Bf16, OverflowsToInfAndOnlyThere) {
  EXPECT_EQ(encode(from_bits(0x7F7F7FFF)), 0x7F7F) << "the last that rounds to the largest";
  EXPECT_EQ(encode(from_bits(0x7F7F8000)), 0x7F80) << "a tie; the largest is odd";
  EXPECT_EQ(encode(from_bits(0x7F7FFFFF)), 0x7F80);
  EXPECT_EQ(encode(from_bits(0xFF7FFFFF)), 0xFF80);
  EXPECT_EQ(encode(from_bits(0x7F800000)), 0x7F80);
  EXPECT_EQ(encode(from_bits(0xFF800000)), 0xFF80);
}

TEST(Bf16, KeepsDenormalsAndSignedZero) {
  EXPECT_EQ(encode(-0.f), 0x8000);
  EXPECT_EQ(encode(from_bits(0x00008000)), 0x0000) << "a tie with 0, which is even";
  EXPECT_EQ(encode(from_bits(0x00008001)), 0x0001);
  EXPECT_EQ(encode(from_bits(0x00018000)), 0x0002);
  EXPECT_EQ(encode(from_bits(0x007FFFFF)), 0x0080) << "the largest denormal rounds to the smallest normal";
}

TEST(Fp32, KeepsEveryBit) {
  testing::Random random(3);
  for (int i = 0; i < 100000; ++i) {
    float x = random.any(), stored = 0, y = 0;
    Segment s = {&stored, nullptr, nullptr};
    Fp32::encode<Scalar>(&x, 1, s);
    Fp32::decode<Scalar>(s, 1, &y);
    ASSERT_EQ(testing::bits_of(x), testing::bits_of(y));
  }
}

// ---- Mutations: roundings that the comparison above must tell from the right one ------------------------

TEST(Bf16, MutationsAreCaught) {
  auto truncate = [](std::uint32_t u) { return u >> 16; };
  auto ties_away = [](std::uint32_t u) { return (u + 0x8000) >> 16; };
  auto ties_down = [](std::uint32_t u) { return (u + 0x7FFF) >> 16; };
  auto saturate = [](std::uint32_t u) {
    std::uint32_t h = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return (h & 0x7FFF) == 0x7F80 ? h - 1 : h;
  };
  auto flush = [](std::uint32_t u) { return (u & 0x7F800000) ? (u + 0x7FFF + (u >> 16 & 1)) >> 16 : u >> 31 << 15; };
  auto caught = [](auto rounding) {
    for (std::uint32_t h = 0; h < 0x7F80; ++h)
      for (std::uint32_t low : {0u, 1u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu})
        if (rounding(h << 16 | low) != nearest(from_bits(h << 16 | low))) return true;
    return false;
  };
  EXPECT_TRUE(caught(truncate));
  EXPECT_TRUE(caught(ties_away));
  EXPECT_TRUE(caught(ties_down));
  EXPECT_TRUE(caught(saturate));
  EXPECT_TRUE(caught(flush));
  EXPECT_FALSE(caught([](std::uint32_t u) { return std::uint32_t{encode(from_bits(u))}; }));
}

}  // namespace
}  // namespace forge::formats
