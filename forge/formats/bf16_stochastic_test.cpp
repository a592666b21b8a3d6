// Bf16Stochastic: exact probabilities first, then what real noise makes of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"
#include "forge/formats/bf16.h"
#include "forge/formats/philox.h"

namespace forge::formats {
namespace {

using testing::bits_of;
using testing::from_bits;

double decoded(std::uint16_t h) { return from_bits(std::uint32_t{h} << 16); }

using Rounding = std::uint16_t (*)(float x, std::uint16_t noise);

std::uint16_t encode(float x, std::uint16_t noise) {
  std::uint16_t h = 0;
  Bf16Stochastic::encode<Scalar>(&x, 1, {&h, nullptr, &noise});
  return h;
}

// For finite numbers. With each of the 65,536 noises once: the neighbour nearer to 0 or, as often as 2¹⁶ times the
// fraction that is cut off, the other one; the largest number stays where the other would be infinite.
::testing::AssertionResult is_exact(Rounding rounding, std::uint32_t u) {
  auto down = static_cast<std::uint16_t>(u >> 16), up = static_cast<std::uint16_t>(down + 1);
  bool saturated = (up & 0x7FFF) == 0x7F80;
  std::uint32_t ups = 0, downs = 0;
  for (std::uint32_t noise = 0; noise < 0x10000; ++noise) {
    std::uint16_t h = rounding(from_bits(u), static_cast<std::uint16_t>(noise));
    ups += h == up;
    downs += h == down;
  }
  std::uint32_t expected = saturated ? 0 : u & 0xFFFF;
  if (ups == expected && downs == 0x10000 - expected) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << std::hex << u << ": up " << ups << " times, down " << downs;
}

constexpr std::uint32_t kUppers[] = {0x0000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x3FFF, 0x7F7F};  // denormals, edges, most
constexpr std::uint32_t kLowers[] = {0, 1, 0x1234, 0x7FFF, 0x8000, 0x8001, 0xFFFF};

TEST(Bf16Stochastic, RoundsUpAsOftenAsTheFractionSays) {
  for (std::uint32_t upper : kUppers)
    for (std::uint32_t lower : kLowers)
      for (std::uint32_t sign : {0u, 0x80000000u}) EXPECT_TRUE(is_exact(encode, sign | upper << 16 | lower));
}

// The neighbours of a number are equally spaced patterns apart, so counts that are exact make the mean exact.
TEST(Bf16Stochastic, HasTheNumberAsItsMean) {
  for (std::uint32_t u : {0x3F801234u, 0xC2F7FFFFu, 0x00008001u, 0x807F4321u, 0x3FFFFFFFu}) {
    double sum = 0;  // exact: 2¹⁶ numbers of 8 bits each, of at most two binades
    for (std::uint32_t noise = 0; noise < 0x10000; ++noise)
      sum += decoded(encode(from_bits(u), static_cast<std::uint16_t>(noise)));
    EXPECT_EQ(sum / 0x10000, from_bits(u)) << std::hex << u;
  }
}

TEST(Bf16Stochastic, KeepsWhatIsABf16AndNeverMakesAnInfinity) {
  for (std::uint32_t h = 0; h < 0x10000; ++h)
    for (std::uint16_t noise : {0, 1, 0x8000, 0xFFFF}) {
      float x = from_bits(h << 16);
      EXPECT_EQ(encode(x, noise), std::isnan(x) ? (h | 0x40) : h) << std::hex << h;
      float next = from_bits(h << 16 | 0xFFFF);
      if (std::isfinite(next)) {
        EXPECT_TRUE(std::isfinite(decoded(encode(next, noise)))) << std::hex << h;
      }
    }
}

TEST(Bf16Stochastic, NaNStaysAQuietNaNOfItsSign) {
  testing::Random random(61);
  for (std::uint32_t payload : {1u, 0xFFFFu, 0x10000u, 0x400000u, 0x7FFFFFu})
    for (std::uint32_t sign : {0u, 0x80000000u})
      for (int i = 0; i < 1000; ++i) {
        std::uint16_t h =
            encode(from_bits(sign | 0x7F800000 | payload), static_cast<std::uint16_t>(random.below(0x10000)));
        ASSERT_EQ(h & 0x7FC0, 0x7FC0);
        ASSERT_EQ(h >> 15, sign >> 31);
      }
}

TEST(Bf16Stochastic, MutationsAreCaught) {
  auto caught = [](Rounding rounding) {
    for (std::uint32_t upper : kUppers)
      for (std::uint32_t lower : kLowers)
        for (std::uint32_t sign : {0u, 0x80000000u})
          if (!is_exact(rounding, sign | upper << 16 | lower)) return true;
    return false;
  };
  EXPECT_TRUE(caught([](float x, std::uint16_t) { return encode(x, 0x8000); })) << "to nearest";
  EXPECT_TRUE(caught([](float x, std::uint16_t noise) { return encode(x, noise & 0xFF00); })) << "8 bits of noise";
  EXPECT_TRUE(caught([](float x, std::uint16_t noise) { return encode(x, noise ? noise : 1); })) << "never 0";
  EXPECT_TRUE(caught([](float x, std::uint16_t noise) {  // ≥ where it is >
    return encode(from_bits(bits_of(x) | 1), noise);
  }));
  EXPECT_TRUE(caught([](float x, std::uint16_t noise) {  // the noise with a sign
    auto extended = static_cast<std::uint32_t>(static_cast<std::int16_t>(noise));
    return static_cast<std::uint16_t>((bits_of(x) + extended) >> 16);
  }));
  EXPECT_TRUE(caught([](float x, std::uint16_t noise) {  // no saturation
    return static_cast<std::uint16_t>((bits_of(x) + noise) >> 16);
  }));
  EXPECT_FALSE(caught(encode));
}

// ---- T7 of numerics.md: over the noise of contract 5 -----------------------------------------------------

// The same number in each column of a row, rounded with the row's noise at a step: how often up.
std::vector<bool> carries(float x, std::int64_t n, std::int64_t step, std::int64_t row = 0) {
  std::vector<float> numbers(static_cast<std::size_t>(n), x);
  std::vector<std::uint16_t> noise(numbers.size()), h(numbers.size());
  fill_noise<Scalar>({.seed = 20220622, .parameter = 77, .step = step}, n, row, 0, n, noise.data());
  Bf16Stochastic::encode<Scalar>(numbers.data(), n, {h.data(), nullptr, noise.data()});
  std::vector<bool> up(numbers.size());
  for (std::size_t j = 0; j < up.size(); ++j) up[j] = h[j] != bits_of(x) >> 16;
  return up;
}

std::int64_t count(const std::vector<bool>& up) { return std::count(up.begin(), up.end(), true); }

// Carries of 16 fractions, 65,536 draws each, against their probabilities: a sum of 16 squares, which exceeds 54 once
// in 200,000 times.
TEST(Bf16Stochastic, CarriesAreThoseOfTheirFractions) {
  constexpr std::int64_t kDraws = 1 << 16;
  double chi_square = 0;
  for (std::uint32_t i = 0; i < 16; ++i) {
    double p = (i + 0.5) / 16,
           up = static_cast<double>(count(carries(from_bits(0x3F800000 | (i << 12) | 0x800), kDraws, i)));
    chi_square += (up - kDraws * p) * (up - kDraws * p) / (kDraws * p * (1 - p));
  }
  EXPECT_LT(chi_square, 54);
  EXPECT_GT(chi_square, 2.5) << "as rare: too even for chance";
}

TEST(Bf16Stochastic, TheMeanOfAMillionIsTheNumberAndTheVarianceIsItsOwn) {
  constexpr std::int64_t kDraws = 1'000'000;
  for (std::uint32_t u : {0x3F800001u, 0x3F802AABu, 0x3F808000u, 0xBFFFF000u}) {
    double p = (u & 0xFFFF) / 65536.0, n = static_cast<double>(kDraws);
    double mean = static_cast<double>(count(carries(from_bits(u), kDraws, 3))) / n;  // in units of the last place
    EXPECT_NEAR(mean, p, 5 * std::sqrt(p * (1 - p) / n)) << std::hex << u;
    double variance = mean * (1 - mean);  // of what is 0 or 1
    EXPECT_LE(variance, 0.25);
    EXPECT_NEAR(variance, p * (1 - p), 5 * std::abs(1 - 2 * p) * std::sqrt(p * (1 - p) / n) + 25 / n);
  }
}

// The correlation of carries, which is of order 1/√n where they are independent.
double correlation(const std::vector<bool>& a, const std::vector<bool>& b) {
  double n = static_cast<double>(a.size()), both = 0, p = static_cast<double>(count(a)) / n,
         q = static_cast<double>(count(b)) / n;
  for (std::size_t j = 0; j < a.size(); ++j) both += a[j] && b[j];
  return (both / n - p * q) / std::sqrt(p * (1 - p) * q * (1 - q));
}

TEST(Bf16Stochastic, StepsRowsAndColumnsAreIndependent) {
  constexpr std::int64_t kDraws = 1 << 18;
  float x = from_bits(0x3F805555);
  double limit = 5 / std::sqrt(static_cast<double>(kDraws));
  std::vector<bool> first = carries(x, kDraws, 1);
  EXPECT_LT(std::abs(correlation(first, carries(x, kDraws, 2))), limit);
  EXPECT_LT(std::abs(correlation(first, carries(x, kDraws, 1 + (1ll << 32)))), limit);
  EXPECT_LT(std::abs(correlation(first, carries(x, kDraws, 1, 1))), limit);
  for (std::ptrdiff_t shift : {1, 2, 7, 8, 64}) {
    std::vector<bool> shifted(first.begin() + shift, first.end());
    shifted.insert(shifted.end(), first.begin(), first.begin() + shift);
    EXPECT_LT(std::abs(correlation(first, shifted)), limit) << "columns " << shift << " apart";
  }
  EXPECT_EQ(correlation(first, carries(x, kDraws, 1)), 1) << "the same noise is seen";
}

}  // namespace
}  // namespace forge::formats
