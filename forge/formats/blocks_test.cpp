#include "forge/formats/blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "forge/base/integers.h"
#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"
#include "forge/formats/list.h"

namespace forge::formats {
namespace {

using testing::Random;

struct Kind {
  Format format;
  Sign sign;
  double levels;

  bool root() const { return sign == Sign::not_negative; }
  bool is_int8() const { return format == Format::int8; }
};
constexpr Kind kKinds[] = {{Format::int8, Sign::any, 127},
                           {Format::int8, Sign::not_negative, 255},
                           {Format::fp8, Sign::any, 448},
                           {Format::fp8, Sign::not_negative, 448}};
std::ostream& operator<<(std::ostream& to, const Kind& k) {
  return to << name_of(k.format) << (k.root() ? ", not negative" : "");
}

struct Coded {
  std::vector<std::uint8_t> codes;
  std::vector<std::uint16_t> scales;
  bool operator==(const Coded&) const = default;
};

float scale_of(const Coded& c, std::size_t block) { return std::bit_cast<float>(std::uint32_t{c.scales[block]} << 16); }
std::size_t block_of(std::size_t j) { return j / static_cast<std::size_t>(kBlockColumns); }

Coded encode(const Kind& kind, const std::vector<float>& x) {
  auto blocks = static_cast<std::size_t>(ceil_div(std::ssize(x), kBlockColumns));
  Coded c = {std::vector<std::uint8_t>(x.size()), std::vector<std::uint16_t>(blocks)};
  with_format(kind.format, kind.sign, [&]<class F>() {
    F::template encode<Scalar>(x.data(), std::ssize(x), {c.codes.data(), c.scales.data(), nullptr});
  });
  return c;
}
std::vector<float> decode(const Kind& kind, Coded c) {
  std::vector<float> x(c.codes.size());
  with_format(kind.format, kind.sign, [&]<class F>() {
    F::template decode<Scalar>({c.codes.data(), c.scales.data(), nullptr}, std::ssize(x), x.data());
  });
  return x;
}

// What is coded: numbers or their roots, in float64. The root of what rounds to 0 is off by 2⁻⁷⁵.
double coded(const Kind& kind, float x) { return kind.root() ? std::sqrt(static_cast<double>(x)) : x; }
double least_root(const Kind& kind) { return kind.root() ? 0x1p-75 : 0; }

// The promises on a row of finite numbers, in blocks whose scale is not below kLeastScale:
//   the scale is the least bf16 that is not below absmax / levels (the quotient is rounded once, its root once more);
//   int8 is at most half a scale away (roots above 0, which never become 0, a whole one near 0), fp8 2⁻⁴ of the number
//   or half its least number.
::testing::AssertionResult is_right(const Kind& kind, const std::vector<float>& x, const Coded& c) {
  constexpr double kRoundings = 0x1p-21;
  std::vector<float> back = decode(kind, c);
  std::vector<double> largest(c.scales.size());
  for (std::size_t j = 0; j < x.size(); ++j) {
    double number = coded(kind, x[j]), scale = scale_of(c, block_of(j)),
           error = std::abs(coded(kind, back[j]) - number);
    double& most = largest[block_of(j)];
    most = std::max(most, std::abs(number));
    bool floor = kind.is_int8() && kind.root() && number > 0 && number < scale;  // coded as 1 at least
    double bound = kind.is_int8() ? scale / (floor ? 1 : 2) + kRoundings * std::abs(number)
                                  : std::max(0x1p-4 * std::abs(number), 0x1p-10 * scale) * (1 + 0x1p-18);
    if (!(error <= bound + least_root(kind)))
      return ::testing::AssertionFailure() << kind << ": " << x[j] << " became " << back[j] << ", scale " << scale;
  }
  for (std::size_t b = 0; b < largest.size(); ++b) {
    double least = largest[b] / kind.levels, scale = scale_of(c, b);
    double below = std::bit_cast<float>((std::uint32_t{c.scales[b]} - 1) << 16);
    if (largest[b] == 0 ? scale != 0 : scale < least * (1 - 0x1p-22) || below >= least * (1 + 0x1p-22))
      return ::testing::AssertionFailure() << kind << ": scale " << scale << " where " << least << " is the least";
  }
  return ::testing::AssertionSuccess();
}

// n numbers, each block of its own magnitude; some zeros. Those that a root is taken of may be denormal.
std::vector<float> row(const Kind& kind, Random& random, std::size_t n, double least_of_roots = -44) {
  std::vector<float> x(n);
  double lowest = kind.root() ? least_of_roots : -20, magnitude = 0;
  for (std::size_t j = 0; j < n; ++j) {
    if (j % static_cast<std::size_t>(kBlockColumns) == 0) magnitude = lowest + (37 - lowest) * random.unit();
    x[j] = random.below(9) == 0 ? random.sign() * 0.f : random.log_uniform(magnitude - 7, magnitude);
    if (kind.root()) x[j] = std::abs(x[j]);
  }
  return x;
}

TEST(Blocks, NumbersAndScalesAreAsNearAsPromised) {
  Random random(81);
  for (const Kind& kind : kKinds)
    for (int i = 0; i < 300; ++i) {
      std::vector<float> x = row(kind, random, static_cast<std::size_t>(1 + random.below(700)));
      ASSERT_TRUE(is_right(kind, x, encode(kind, x)));
    }
}

TEST(Blocks, ZerosOfEitherSignAreZeroBytes) {
  for (const Kind& kind : kKinds)
    for (float zero : {0.f, -0.f})
      EXPECT_EQ(encode(kind, std::vector<float>(77, zero)), (Coded{std::vector<std::uint8_t>(77), {0, 0, 0}})) << kind;
}

TEST(Blocks, ZerosAmongNumbersStayZeros) {
  for (const Kind& kind : kKinds) {
    std::vector<float> x(32);
    x[5] = 3;
    std::vector<float> back = decode(kind, encode(kind, x));
    for (std::size_t j = 0; j < x.size(); ++j) EXPECT_TRUE(j == 5 || back[j] == 0) << kind;
  }
}

TEST(Blocks, NegatedNumbersHaveNegatedCodes) {
  Random random(82);
  for (const Kind& kind : kKinds) {
    if (kind.root()) continue;
    std::vector<float> x = row(kind, random, 5000), minus;
    for (float& number : x) {
      if (random.below(4) == 0) number = std::bit_cast<float>(testing::bits_of(number) & 0xFFFF0000);  // more ties
      minus.push_back(-number);
    }
    Coded a = encode(kind, x), b = encode(kind, minus);
    EXPECT_EQ(a.scales, b.scales);
    for (std::size_t j = 0; j < x.size(); ++j)
      ASSERT_EQ(b.codes[j], kind.is_int8() ? static_cast<std::uint8_t>(-a.codes[j]) : a.codes[j] ^ 0x80) << x[j];
  }
}

TEST(Blocks, ABlockThatIsNotFiniteIsNaNAndItsNeighboursAreNot) {
  Random random(83);
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const Kind& kind : kKinds)
    for (float bad : {kInf, -kInf, kNaN, -kNaN, std::bit_cast<float>(0x7F801234u), std::bit_cast<float>(0xFFC0FFFFu)})
      for (std::size_t at : {0u, 31u, 40u, 63u, 64u, 99u}) {
        std::vector<float> x = row(kind, random, 100);
        Coded clean = encode(kind, x);
        x[at] = bad;
        Coded c = encode(kind, x);
        std::vector<float> back = decode(kind, c);
        for (std::size_t j = 0; j < x.size(); ++j) {
          bool hit = block_of(j) == block_of(at);
          ASSERT_EQ(std::isnan(back[j]), hit) << kind;
          ASSERT_EQ(c.codes[j], hit ? 0 : clean.codes[j]) << kind;
        }
        for (std::size_t b = 0; b < c.scales.size(); ++b)
          ASSERT_EQ(c.scales[b], b == block_of(at) ? 0x7FC0 : clean.scales[b]) << kind;
      }
}

TEST(Blocks, EachKnowsItsOwnNumbersOnly) {
  Random random(84);
  for (const Kind& kind : kKinds) {
    std::vector<float> x = row(kind, random, 1100);  // more blocks than have their scales computed at once
    Coded before = encode(kind, x);
    for (std::size_t block = 0; block < before.scales.size(); ++block) {
      std::vector<float> other = x;
      for (std::size_t j = 0; j < x.size(); ++j)
        if (block_of(j) == block) other[j] = 100 * x[j];
      Coded after = encode(kind, other);
      for (std::size_t j = 0; j < x.size(); ++j)
        if (block_of(j) != block) {
          ASSERT_EQ(after.codes[j], before.codes[j]);
          ASSERT_EQ(after.scales[block_of(j)], before.scales[block_of(j)]);
        }
    }
  }
}

// A row's end is the beginning of a longer one's block, filled up with zeros.
TEST(Blocks, ARaggedBlockIsOneWithZeros) {
  Random random(85);
  for (const Kind& kind : kKinds)
    for (std::size_t n = 1; n <= 100; ++n) {
      std::vector<float> x = row(kind, random, n), full = x;
      full.resize(128);
      Coded c = encode(kind, x), f = encode(kind, full);
      f.codes.resize(n);
      f.scales.resize(c.scales.size());
      ASSERT_EQ(c, f) << kind << ", " << n;
    }
}

TEST(Blocks, TinyBlocksAreZero) {
  constexpr float kLeast = Int8<Sign::any>::kLeastScale;
  for (const Kind& kind : kKinds) {
    float least = static_cast<float>(kind.levels) * kLeast;
    for (float x : {least, std::nextafter(least, 0.f), 0x1p-126f, 0x1p-149f}) {
      std::vector<float> row(40, 0.f);
      row[33] = x;
      Coded c = encode(kind, row);
      if (kind.root() || x == least) {
        EXPECT_GT(scale_of(c, 1), 0) << kind << ", " << x;  // a root is far above
        EXPECT_GT(decode(kind, c)[33], 0) << kind << ", " << x;
      } else {
        EXPECT_EQ(c, (Coded{std::vector<std::uint8_t>(40), {0, 0}})) << kind << ", " << x;
      }
    }
  }
}

// Half a scale above the largest number there may be no number.
TEST(Blocks, OnlyTheLargestNumbersOverflow) {
  constexpr float kMost = std::numeric_limits<float>::max();
  for (const Kind& kind : kKinds)
    for (double part : {1.0, 0.99, 0.9}) {
      float back = decode(kind, encode(kind, {static_cast<float>(part * kMost)}))[0];
      EXPECT_TRUE(part > 0.95 || std::isfinite(back)) << kind << ", " << part;
      EXPECT_GE(back, 0.9 * part * kMost);
    }
}

// ---- Blocks that are encoded again without having changed -------------------------------------------------

// With the largest code in a block, its scale fits: every one of bf16 does.
TEST(Blocks, AFullBlockIsAFixedPoint) {
  for (const Kind& kind : kKinds)
    for (int exponent : {-60, -1, 0, 40})
      for (int mantissa = 128; mantissa < 256; ++mantissa) {
        float scale = std::ldexp(static_cast<float>(mantissa), exponent);
        Coded c = {{}, {static_cast<std::uint16_t>(testing::bits_of(scale) >> 16)}};
        for (int j = 0; j < 32; ++j) {
          int code = kind.is_int8() ? static_cast<int>(kind.levels) - 7 * j : 0x7E - 3 * j;
          if (!kind.is_int8() && !kind.root() && j % 2) code |= 0x80;
          c.codes.push_back(static_cast<std::uint8_t>(code));
        }
        ASSERT_EQ(encode(kind, decode(kind, c)), c) << kind << ", scale " << mantissa;
      }
}

// Others move, by as much as the largest code was rounded, and come to rest.
TEST(Blocks, ABlockThatDoesNotChangeComesToRest) {
  Random random(86);
  for (const Kind& kind : kKinds)
    for (int i = 0; i < 100; ++i) {
      std::vector<float> x = row(kind, random, 320, -30);  // denormal squares lose their roots each time
      Coded c = encode(kind, x);
      for (int again = 0; again < 3; ++again) c = encode(kind, decode(kind, c));
      ASSERT_EQ(encode(kind, decode(kind, c)), c) << kind;
      std::vector<float> back = decode(kind, c);
      for (std::size_t j = 0; j < x.size(); ++j) {
        double number = coded(kind, x[j]), scale = scale_of(c, block_of(j));
        double bound = kind.is_int8() ? scale : std::max(0x1p-3 * std::abs(number), 0x1p-9 * scale);
        ASSERT_NEAR(coded(kind, back[j]), number, 1.05 * bound + least_root(kind)) << kind;
      }
    }
}

// ---- E4M3, by its definition ------------------------------------------------------------------------------

double e4m3(int code) {
  int exponent = code >> 3 & 15;
  double fraction = (code & 7) / 8.0;
  double magnitude = exponent == 0 ? std::ldexp(fraction, -6) : std::ldexp(1 + fraction, exponent - 7);
  return code & 0x80 ? -magnitude : magnitude;
}
std::uint8_t e4m3_code(float y) {
  std::uint8_t code = 0;
  E4M3Code::encode<Scalar, Sign::any>(Scalar(y), static_cast<Scalar::Bits*>(nullptr), &code, 0);
  return code;
}
int nearest_e4m3(double y) {
  int best = 0;
  for (int code = 1; code < 0x7F; ++code) {
    double distance = std::abs(e4m3(code) - std::abs(y)), least = std::abs(e4m3(best) - std::abs(y));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(y) ? 0x80 : 0);
}

TEST(E4M3, EveryCodeIsItsNumber) {
  for (int code = 0; code < 0x100; ++code) {
    if ((code & 0x7F) == 0x7F) continue;  // NaN; never stored
    auto byte = static_cast<std::uint8_t>(code);
    float y = (E4M3Code::decode<Scalar, Sign::any>(&byte, 0)).x;
    EXPECT_EQ(y, e4m3(code)) << code;
    EXPECT_EQ(std::signbit(y), code >= 0x80) << code;
    EXPECT_EQ(e4m3_code(y), code);
  }
}

TEST(E4M3, RoundsToNearestTiesToEven) {
  Random random(87);
  for (int code = 0; code < 0x7E; ++code) {
    auto tie = static_cast<float>((e4m3(code) + e4m3(code + 1)) / 2);
    for (float y : {tie, std::nextafter(tie, 0.f), std::nextafter(tie, 1e3f)})
      for (float sign : {1.f, -1.f}) EXPECT_EQ(e4m3_code(sign * y), nearest_e4m3(sign * y)) << sign * y;
  }
  for (int i = 0; i < 20000; ++i) {
    float y = random.below(2) ? random.uniform(-448, 448) : random.log_uniform(-4, 2);
    ASSERT_EQ(e4m3_code(y), nearest_e4m3(y)) << y;
  }
  EXPECT_EQ(e4m3_code(448.0001f), 0x7E) << "a rounding above the largest";
}

// ---- Mutations: codecs that the promises must tell from the right one -------------------------------------

// A block codec in float64. What may be wrong; the defaults are right.
struct Plain {
  enum { up, nearest, twice } scale = up;
  enum { to_nearest, cut, floored } code = to_nearest;
  std::size_t block = 32;
  bool no_root = false;
  double levels_less = 0;
};

Coded encode_plainly(const Kind& kind, const std::vector<float>& x, const Plain& p) {
  auto blocks = static_cast<std::size_t>(ceil_div(std::ssize(x), kBlockColumns));
  Coded c = {std::vector<std::uint8_t>(x.size()), std::vector<std::uint16_t>(blocks)};
  auto number = [&](std::size_t j) { return p.no_root ? x[j] : coded(kind, x[j]); };
  for (std::size_t b = 0; b < blocks; ++b) {
    double most = 0;
    for (std::size_t j = b * 32; j < std::min(b * 32 + p.block, x.size()); ++j)
      most = std::max(most, std::abs(number(j)));
    auto bits = testing::bits_of(static_cast<float>(most / (kind.levels - p.levels_less)));
    if (p.scale == Plain::up) bits += 0xFFFF;
    if (p.scale == Plain::nearest) bits += 0x8000;
    if (p.scale == Plain::twice) bits += 0x80FFFF;
    c.scales[b] = most == 0 ? 0 : static_cast<std::uint16_t>(bits >> 16);
    double scale = scale_of(c, b);
    for (std::size_t j = b * 32; scale > 0 && j < std::min(b * 32 + 32, x.size()); ++j) {
      double y = std::clamp(number(j) / scale, -kind.levels, kind.levels);
      double integer = p.code == Plain::cut       ? std::trunc(y)
                       : p.code == Plain::floored ? std::floor(y)
                                                  : std::nearbyint(y);
      int code = kind.is_int8() ? static_cast<int>(integer) : nearest_e4m3(y);
      if (!kind.is_int8() && p.code == Plain::cut && std::abs(e4m3(code)) > std::abs(y)) --code;
      if (!kind.is_int8() && p.code == Plain::floored && e4m3(code) > y) code += code & 0x80 ? 1 : -1;
      c.codes[j] = static_cast<std::uint8_t>(code);
    }
  }
  return c;
}

TEST(Blocks, MutationsAreCaught) {
  const Plain wrong[] = {{.scale = Plain::nearest}, {.scale = Plain::twice}, {.code = Plain::cut},
                         {.code = Plain::floored},  {.block = 31},           {.no_root = true},
                         {.levels_less = 1}};
  for (const Kind& kind : kKinds) {
    auto caught = [&](const Plain& plain) {
      Random random(88);
      for (int i = 0; i < 30; ++i) {
        std::vector<float> x = row(kind, random, 320);
        if (!is_right(kind, x, encode_plainly(kind, x, plain))) return true;
      }
      return false;
    };
    for (const Plain& plain : wrong)
      EXPECT_TRUE(caught(plain) || (plain.no_root && !kind.root())) << kind << ", mutation " << &plain - wrong;
    EXPECT_FALSE(caught({})) << kind;
  }
}

}  // namespace
}  // namespace forge::formats
