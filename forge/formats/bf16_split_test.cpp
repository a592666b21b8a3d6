#include "forge/formats/bf16_split.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"

namespace forge::formats {
namespace {

using testing::bits_of;
using testing::from_bits;

// The two parts of a number and what they decode to.
struct Split {
  std::uint16_t high;
  int low;
  std::uint32_t back;
};
using Splitting = Split (*)(std::uint32_t u);

template <class Format, class Low>
Split split(std::uint32_t u) {
  std::uint16_t high = 0;
  Low low = 0;
  float x = from_bits(u), back = 0;
  Format::template encode<Scalar>(&x, 1, {&high, &low, nullptr});
  Format::template decode<Scalar>({&high, &low, nullptr}, 1, &back);
  return {high, low, bits_of(back)};
}
Split split16(std::uint32_t u) { return split<Bf16Plus16, std::int16_t>(u); }
Split split8(std::uint32_t u) { return split<Bf16Plus8, std::int8_t>(u); }

std::uint16_t nearest_bf16(std::uint32_t u) {
  std::uint16_t h = 0;
  Bf16::encode_at(Scalar(from_bits(u)), {&h, nullptr, nullptr}, 0);
  return h;
}

// Every upper half, so every sign, exponent, denormal, infinity and NaN, with the lower halves around the ties of 8 and
// of 16 bits, and random ones.
template <class F>
void for_each_pattern(F&& f, int any) {
  testing::Random random(71);
  constexpr std::uint32_t kLower[] = {0,      1,      0x7F,   0x80,   0x81,   0xFF,   0x100,  0x17F,  0x180,
                                      0x181,  0x7EFF, 0x7F7F, 0x7F80, 0x7F81, 0x7FFF, 0x8000, 0x8001, 0x807F,
                                      0x8080, 0x8081, 0xFE80, 0xFEFF, 0xFF00, 0xFF7F, 0xFF80, 0xFF81, 0xFFFF};
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (std::uint32_t lower : kLower) f(upper << 16 | lower);
    for (int i = 0; i < any; ++i) f(upper << 16 | static_cast<std::uint32_t>(random.below(0x10000)));
  }
}

bool is_quiet_nan(const Split& s, std::uint32_t u) {
  return (s.high & 0x7FC0) == 0x7FC0 && s.high >> 15 == u >> 31 && s.low == 0 && s.back == std::uint32_t{s.high} << 16;
}

// Lossless; forward sees the nearest bf16, at exact ties the one away from 0.
bool is_right16(const Split& s, std::uint32_t u) {
  if (std::isnan(from_bits(u))) return is_quiet_nan(s, u);
  bool tie = (u & 0xFFFF) == 0x8000;
  return s.back == u && s.high == (tie ? (u >> 16) + 1 : nearest_bf16(u));
}

// The number that the pattern u means; of 2¹²⁸, which infinity's is, too.
double value(std::uint32_t u) {
  int exponent = static_cast<int>(u >> 23 & 0xFF);
  double fraction = (u & 0x7FFFFF) * 0x1p-23;
  double magnitude = exponent == 0 ? std::ldexp(fraction, -126) : std::ldexp(1 + fraction, exponent - 127);
  return u >> 31 ? -magnitude : magnitude;
}

// The nearest pattern whose last 8 bits are 0, ties to the one whose 9th is, by the distances of the numbers.
std::uint32_t nearest24(std::uint32_t u) {
  std::uint32_t below = u & 0xFFFFFF00, above = below + 0x100;
  double down = std::abs(value(u) - value(below)), up = std::abs(value(above) - value(u));
  return up < down || (up == down && (below & 0x100)) ? above : below;
}

// Nearest of 24 bits, at most 1/512 of bf16's last place away; forward sees the bf16 nearest to that, ties away from 0.
bool is_right8(const Split& s, std::uint32_t u) {
  if (std::isnan(from_bits(u))) return is_quiet_nan(s, u);
  if (std::isinf(from_bits(u))) return s.back == u && s.high == u >> 16 && s.low == 0;
  std::uint32_t rounded = nearest24(u);
  double last_place = value((u & 0x7F800000) + 0x10000) - value(u & 0x7F800000);
  bool tie = (rounded & 0xFFFF) == 0x8000;
  return s.back == rounded && std::abs(value(s.back) - value(u)) <= last_place / 512 &&
         s.high == (tie ? (rounded >> 16) + 1 : nearest_bf16(rounded));
}

TEST(Bf16Plus16, IsLosslessAndItsUpperHalfIsTheNearestBf16) {
  for_each_pattern([](std::uint32_t u) { ASSERT_TRUE(is_right16(split16(u), u)) << std::hex << u; }, 64);
}

TEST(Bf16Plus8, IsTheNearestOf24BitsAndItsUpperHalfTheNearestBf16) {
  for_each_pattern([](std::uint32_t u) { ASSERT_TRUE(is_right8(split8(u), u)) << std::hex << u; }, 16);
}

TEST(Bf16Split, NumbersNearTheLargest) {
  // Forward sees an infinity where bf16 has no nearer number; with 16 bits more the number itself is kept.
  EXPECT_EQ(split16(0x7F7FFFFF).high, 0x7F80);
  EXPECT_EQ(split16(0x7F7FFFFF).low, -1);
  EXPECT_EQ(split16(0x7F7FFFFF).back, 0x7F7FFFFF);
  EXPECT_EQ(split16(0xFF7F8000).back, 0xFF7F8000);
  // With 8, the upper half of the last step is an infinity.
  EXPECT_EQ(split8(0x7F7FFF7F).back, 0x7F7FFF00);
  EXPECT_EQ(split8(0x7F7FFF80).back, 0x7F800000) << "a tie; the largest of 24 bits is odd";
  EXPECT_EQ(split8(0x7F7FFFFF).back, 0x7F800000);
  EXPECT_EQ(split8(0xFF7FFFFF).back, 0xFF800000);
}

// What is stored decodes and encodes to itself: a weight that does not move does not drift.
TEST(Bf16Split, StoredNumbersStay) {
  for_each_pattern(
      [](std::uint32_t u) {
        for (Splitting splitting : {split16, split8}) {
          Split once = splitting(u), twice = splitting(once.back);
          ASSERT_TRUE(once.high == twice.high && once.low == twice.low) << std::hex << u;
        }
      },
      2);
}

TEST(Bf16Split, MutationsAreCaught) {
  auto caught = [](Splitting splitting, bool (*is_right)(const Split&, std::uint32_t)) {
    bool found = false;
    for_each_pattern([&](std::uint32_t u) { found = found || !is_right(splitting(u), u); }, 0);
    return found;
  };
  EXPECT_TRUE(caught(
      [](std::uint32_t u) -> Split {  // the upper half cut, not rounded
        Split s = split16(u);
        return {static_cast<std::uint16_t>(u >> 16), s.low, s.back};
      },
      is_right16));
  EXPECT_TRUE(caught(
      [](std::uint32_t u) -> Split {  // the upper half of bf16's own rounding: a tie's distance does not fit in 16 bits
        std::uint16_t high = nearest_bf16(u);
        auto low = static_cast<std::int16_t>(u - (std::uint32_t{high} << 16));
        return {high, low, (std::uint32_t{high} << 16) + static_cast<std::uint32_t>(low)};
      },
      is_right16));
  EXPECT_TRUE(caught(
      [](std::uint32_t u) -> Split {  // the lower half without its sign
        Split s = split16(u);
        return {s.high, s.low, (std::uint32_t{s.high} << 16) + (static_cast<std::uint32_t>(s.low) & 0xFFFF)};
      },
      is_right16));
  EXPECT_TRUE(caught(
      [](std::uint32_t u) -> Split {  // NaN as any number
        std::uint32_t high = (u + 0x8000) & 0xFFFF0000;
        return {static_cast<std::uint16_t>(high >> 16), static_cast<std::int16_t>(u - high), u};
      },
      is_right16));
  EXPECT_TRUE(caught([](std::uint32_t u) { return split8(u & 0xFFFFFF00); }, is_right8)) << "cut";
  EXPECT_TRUE(caught([](std::uint32_t u) { return split8(u + 0x80); }, is_right8)) << "ties away from 0";
  EXPECT_TRUE(caught([](std::uint32_t u) { return split8(nearest_bf16(u) << 16); }, is_right8)) << "no lower part";
  EXPECT_FALSE(caught(split16, is_right16));
  EXPECT_FALSE(caught(split8, is_right8));
}

}  // namespace
}  // namespace forge::formats
