// Formats and noise on vector registers give the bytes that they give on scalars.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "forge/base/integers.h"
#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"
#include "forge/formats/list.h"
#include "forge/formats/philox.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/cpu/halves.h"

namespace forge::cpu {
namespace {

using testing::Random;

constexpr std::size_t kOffset = 4, kRoom = 8;

// The parts of n stored columns, which begin where no register is aligned, with bytes behind them that nothing may
// write.
struct Parts {
  SegmentLayout layout;
  std::vector<std::byte> values, rest;
  std::vector<std::uint16_t> noise;

  Parts(Format format, Sign sign, std::size_t n)
      : layout{size_of(sign == Sign::any ? info_of(format).values : info_of(format).not_negative_values),
               size_of(info_of(format).rest), info_of(format).columns_of_rest},
        values(kOffset + n * layout.value_bytes + kRoom, std::byte{0xA5}),
        rest(kOffset + rest_columns(layout, n) * layout.rest_bytes + kRoom, std::byte{0xA5}) {}
  static std::size_t rest_columns(const SegmentLayout& layout, std::size_t n) {
    return static_cast<std::size_t>(ceil_div(static_cast<std::int64_t>(n), layout.columns_of_rest));
  }
  Segment segment(Format format) {
    return {values.data() + kOffset, info_of(format).has_rest ? rest.data() + kOffset : nullptr, noise.data()};
  }
};

// On scalars, from and to aligned copies.
struct Scalars {
  Format format;
  Sign sign;

  void encode(const std::vector<float>& x, Parts& parts) const {
    std::vector<std::uint32_t> values(x.size() + 8), rest(x.size() + 8);
    auto n = std::ssize(x);
    with_format(format, sign, [&]<class F>() {
      F::template encode<Scalar>(x.data(), n, {values.data(), rest.data(), parts.noise.data()});
    });
    std::memcpy(parts.values.data() + kOffset, values.data(), parts.values.size() - kOffset - kRoom);
    if (info_of(format).has_rest)
      std::memcpy(parts.rest.data() + kOffset, rest.data(), parts.rest.size() - kOffset - kRoom);
  }
  std::vector<float> decode(const Parts& parts, std::size_t n) const {
    std::vector<std::uint32_t> values(n + 8), rest(n + 8);
    std::memcpy(values.data(), parts.values.data() + kOffset, parts.values.size() - kOffset - kRoom);
    std::memcpy(rest.data(), parts.rest.data() + kOffset, parts.rest.size() - kOffset - kRoom);
    std::vector<float> x(n);
    with_format(format, sign, [&]<class F>() {
      F::template decode<Scalar>({values.data(), rest.data(), nullptr}, static_cast<std::int64_t>(n), x.data());
    });
    return x;
  }
};

::testing::AssertionResult same(const Codec& codec, Format format, Sign sign, const std::vector<float>& x,
                                Random& random) {
  Parts vector(format, sign, x.size()), scalar(format, sign, x.size());
  for (std::size_t j = 0; j < x.size(); ++j) vector.noise.push_back(static_cast<std::uint16_t>(random.below(0x10000)));
  scalar.noise = vector.noise;
  codec.encode(x.data(), vector.layout, std::ssize(x), vector.segment(format));
  Scalars{format, sign}.encode(x, scalar);
  if (vector.values != scalar.values) return ::testing::AssertionFailure() << "values differ";
  if (vector.rest != scalar.rest) return ::testing::AssertionFailure() << "the rest differs";
  std::vector<float> back(x.size() + 1, 42.f);
  codec.decode(vector.segment(format), vector.layout, std::ssize(x), back.data());
  if (back.back() != 42) return ::testing::AssertionFailure() << "decoded beside the columns";
  back.pop_back();
  return testing::same_numbers(back, Scalars{format, sign}.decode(scalar, x.size()));
}

// Calls f(target, format, sign) for all of them.
template <class F>
void for_each_codec(F&& f) {
  for (Target target : targets())
    for (int i = 0; i < kFormatCount; ++i)
      for (Sign sign : {Sign::any, Sign::not_negative})
        if (sign == Sign::any || kFormats[i].for_moments) {
          SCOPED_TRACE(::testing::Message() << name_of(target) << ", " << kFormats[i].name);
          f(target, static_cast<Format>(i), sign);
        }
}

// Ordinary numbers, wild ones, any pattern; one hundred of any pattern would leave no block finite.
std::vector<float> numbers(Random& random, Sign sign, std::size_t n, int kind) {
  std::vector<float> x(n);
  for (float& one : x) {
    one = kind == 0 ? random.log_uniform(-3, 0) : kind == 1 ? random.wild() : random.any();
    if (kind == 2 && random.below(4) > 0) one = random.uniform(-1, 1);
    if (sign == Sign::not_negative) one = std::abs(one);
  }
  return x;
}

TEST(VectorFormats, AreTheScalarOnesForEveryLength) {
  Random random(91);
  for_each_codec([&](Target target, Format format, Sign sign) {
    Codec codec = format_half(target).codec(format, sign);
    for (std::size_t n = 0; n <= 100; ++n)
      for (int kind : {0, 1, 2})
        EXPECT_TRUE(same(codec, format, sign, numbers(random, sign, n, kind), random)) << n << ", " << kind;
    for (std::size_t n : {255u, 256u, 511u, 513u, 1056u})
      for (int kind : {0, 1, 2})
        EXPECT_TRUE(same(codec, format, sign, numbers(random, sign, n, kind), random)) << n << ", " << kind;
  });
}

TEST(VectorFormats, AreTheScalarOnesAroundEveryTie) {
  Random random(92);
  for_each_codec([&](Target target, Format format, Sign sign) {
    Codec codec = format_half(target).codec(format, sign);
    std::vector<float> x;
    for (int i = 0; i < 32 * 200; ++i) {
      // A block's largest number makes its scale 1, and others are halves of it, with a last bit more or less.
      float levels = format == Format::fp8 ? 448.f : sign == Sign::any ? 127.f : 255.f;
      float tie = static_cast<float>(random.below(static_cast<std::int64_t>(2 * levels))) / 2;
      float y = i % 32 == 0 ? levels : random.below(2) ? tie : std::nextafter(tie, random.sign() * 1e9f);
      x.push_back(sign == Sign::any ? random.sign() * y : y * y);
    }
    EXPECT_TRUE(same(codec, format, sign, x, random));
  });
}

TEST(VectorFormats, TheNoiseIsTheScalarOne) {
  Random random(93);
  for (Target target : targets())
    for (int i = 0; i < 3000; ++i) {
      Noise noise = {.seed = random.bits(),
                     .parameter = static_cast<std::uint32_t>(random.bits()),
                     .step = random.below(1ll << 48),
                     .use = static_cast<std::uint32_t>(random.below(4)),
                     .col = random.below(64)};
      std::int64_t in = 1 + random.below(600), col = random.below(in), n = random.below(in - col + 1);
      if (i % 3 == 0) {  // groups from below 2³² to above
        noise.in = 1ll << 36;
        noise.col = (1ll << 35) - col - random.below(n + 1);
      }
      std::int64_t row = i % 3 == 0 ? 0 : random.below(1 << 20);
      std::vector<std::uint16_t> vector(static_cast<std::size_t>(n) + 1, 0xA5A5), scalar = vector;
      format_half(target).noise(noise, in, row, col, n, vector.data());
      formats::fill_noise<Scalar>(noise, in, row, col, n, scalar.data());
      ASSERT_EQ(vector, scalar) << name_of(target) << ", piece " << i;
    }
}

// The comparison sees one bit anywhere: codecs that differ in the last column, in a scale, in what lies behind.
TEST(VectorFormats, MutationsAreCaught) {
  if (targets().empty()) GTEST_SKIP() << "no vector unit";
  static Codec right;
  right = format_half(targets().back()).codec(Format::int8, Sign::any);
  using Encode = void (*)(const float*, const SegmentLayout&, std::int64_t, const Segment&);
  auto caught = [](Encode encode) {
    Random random(94);
    std::vector<float> x = numbers(random, Sign::any, 77, 0);
    return !same({right.decode, encode}, Format::int8, Sign::any, x, random);
  };
  EXPECT_TRUE(caught([](const float* x, const SegmentLayout& layout, std::int64_t n, const Segment& s) {
    right.encode(x, layout, n, s);
    static_cast<std::uint8_t*>(s.values)[n - 1] ^= 1;
  }));
  EXPECT_TRUE(caught([](const float* x, const SegmentLayout& layout, std::int64_t n, const Segment& s) {
    right.encode(x, layout, n, s);
    static_cast<std::uint8_t*>(s.rest)[4] ^= 1;
  }));
  EXPECT_TRUE(caught([](const float* x, const SegmentLayout& layout, std::int64_t n, const Segment& s) {
    right.encode(x, layout, n, s);
    static_cast<std::uint8_t*>(s.values)[n] ^= 1;
  }));
  EXPECT_FALSE(caught(right.encode));
}

}  // namespace
}  // namespace forge::cpu
