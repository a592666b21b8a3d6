#include "forge/kernels/cpu/pairs.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"

namespace forge::cpu {
namespace {

using namespace forge::testing;

// What its terms refer to.
struct Factors {
  // Every number of dY and X, but for the given ones at their beginning, is 1.
  Factors(DType type_of_dY, DType type_of_X, float dY0, float X0)
      : dY(3, 5, type_of_dY), X(3, 7, type_of_X), D(5, 7, DType::f32) {
    dY.fill([&, first = true]() mutable { return std::exchange(first, false) ? dY0 : 1.f; });
    X.fill([&, first = true]() mutable { return std::exchange(first, false) ? X0 : 1.f; });
    D.fill([] { return 1.f; });
  }
  Term outer(float scale = 1) const { return Outer{dY.view(), X.view(), scale}; }
  Term dense() const { return Dense{D.view()}; }

  Buffer dY, X, D;
};

bool is_exact(const std::vector<Term>& terms) {
  SerialExecutor serial;
  bool is = is_exact_in_pairs({5, 7, terms}, serial);
  for (const NamedExecutor& e : executors()) EXPECT_EQ(is_exact_in_pairs({5, 7, terms}, e.executor), is) << e.name;
  return is;
}

bool is_exact(DType dY, DType X, float dY0, float X0) { return is_exact({Factors(dY, X, dY0, X0).outer()}); }

TEST(Pairs, AreForBf16ThatMeetsNoDenormal) {
  constexpr DType bf16 = DType::bf16;
  EXPECT_TRUE(is_exact(bf16, bf16, 1, 1));
  EXPECT_FALSE(is_exact(DType::f32, bf16, 1, 1));
  EXPECT_FALSE(is_exact(bf16, DType::f16, 1, 1));
  // The smallest exponents: fields of 127 are a 1, and 142 together are the least.
  EXPECT_TRUE(is_exact(bf16, bf16, -0x1p-112f, 1));
  EXPECT_FALSE(is_exact(bf16, bf16, -0x1p-113f, 1));
  EXPECT_TRUE(is_exact(bf16, bf16, 0x1p-60f, -0x1p-52f));
  EXPECT_FALSE(is_exact(bf16, bf16, 0x1p-60f, -0x1.8p-53f));
  // Denormals that are read.
  EXPECT_FALSE(is_exact(bf16, bf16, 0x1p-130f, 1));
  EXPECT_FALSE(is_exact(bf16, bf16, 1, -0x1p-133f));
  Buffer denormal = Buffer(1, 5, bf16).fill([] { return 0x1p-130f; });
  Buffer large = Buffer(1, 7, bf16).fill([] { return 0x1p60f; });
  EXPECT_FALSE(is_exact({Outer{denormal.view(), large.view()}}));
  for (float any : {0.f, -0.f, INFINITY, -INFINITY, NAN}) {
    EXPECT_TRUE(is_exact(bf16, bf16, any, 1)) << any;
    EXPECT_TRUE(is_exact(bf16, bf16, 1, any)) << any;
  }
}

TEST(Pairs, ComeFirstAndAsTheyAre) {
  Factors f(DType::bf16, DType::bf16, 1, 1), small(DType::bf16, DType::bf16, 0x1p-80f, 1),
      other(DType::bf16, DType::bf16, 1, 0x1p-80f);
  EXPECT_FALSE(is_exact({}));
  EXPECT_FALSE(is_exact({f.dense()}));
  EXPECT_TRUE(is_exact({f.outer(), f.outer()}));
  EXPECT_TRUE(is_exact({f.outer(), f.dense()}));
  EXPECT_FALSE(is_exact({f.dense(), f.outer()}));
  EXPECT_FALSE(is_exact({f.outer(), f.dense(), f.outer()}));
  EXPECT_FALSE(is_exact({f.outer(), f.outer(0.5f)}));
  EXPECT_TRUE(is_exact({f.outer(), small.outer()}));
  // Each is well by itself: their sum is of the step of the smaller, and its own factors say so.
  EXPECT_FALSE(is_exact({small.outer(), other.outer()}));
}

// Tokens in twos whose products nearly cancel, of numbers with these exponent fields: sums as small as a product's last
// place, and zeros of either sign.
struct Cancelling {
  Cancelling(std::int64_t tokens, int field_of_dY, int field_of_X, Random& random)
      : dY(tokens, 13, DType::bf16), X(tokens, 70, DType::bf16) {
    auto fill = [&](Buffer& m, int field, float opposite) {
      std::vector<float> before(static_cast<std::size_t>(m.view().cols));
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::size_t c = 0; c < before.size(); ++c) {
          auto near = static_cast<float>(128 + random.below(4));
          float magnitude = std::ldexp(near, field - 127 - 7) * static_cast<float>(random.below(8) != 0);
          before[c] = t % 2 ? std::copysign(magnitude, opposite * before[c])
                            : magnitude * static_cast<float>(1 - 2 * random.below(2));
          static_cast<BFloat16*>(m.view().row(t))[c] =
              BFloat16{static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(before[c]) >> 16)};
        }
    };
    fill(dY, field_of_dY, -1);
    fill(X, field_of_X, 1);
  }
  Buffer dY, X;
};

// Whose product with what fills up its pair has to leave −0 alone.
TEST(Pairs, LeaveTheSignOfZeroToALastTokenAlone) {
  for (std::int64_t tokens : {1, 2, 3}) {
    Buffer dY = Buffer(tokens, 9, DType::bf16).fill([] { return 0.f; });
    Buffer X = Buffer(tokens, 33, DType::bf16).fill([] { return -1.f; });
    Term term = Outer{dY.view(), X.view()};
    SerialExecutor serial;
    for (Target target : available_targets())
      for (float zero : run_materialize({serial, target}, {9, 33, {&term, 1}}).numbers())
        ASSERT_TRUE(same_number(zero, -0.f)) << name_of(target) << ", " << tokens << " tokens";
  }
}

TEST(Pairs, GiveTheDefinedBitsDownToTheSmallestNumbers) {
  Random random(71);
  for (auto [dY, X] : {std::pair{127, 127}, std::pair{71, 71}, std::pair{15, 127}, std::pair{70, 71}, std::pair{60, 75},
                       std::pair{64, 64}, std::pair{1, 141}, std::pair{1, 100}})
    for (std::int64_t tokens : {1, 2, 5, 64, 1027}) {
      Cancelling one(tokens, dY, X, random), two(3, dY + 1, X, random);
      std::vector<Term> terms = {Outer{one.dY.view(), one.X.view()}, Outer{two.dY.view(), two.X.view()}};
      Expression G = {13, 70, terms};
      std::vector<float> defined = defined_gradient(G);
      for (Target target : available_targets())
        for (const NamedExecutor& e : executors())
          EXPECT_TRUE(same_numbers(run_materialize({e.executor, target}, G).numbers(), defined))
              << name_of(target) << ", exponent fields " << dY << " and " << X << ", " << tokens << " tokens";
    }
}

TEST(Pairs, OverflowAsTheyWouldOneByOne) {
  Random random(72);
  const float largest = std::bit_cast<float>(0x7F7F0000u);
  for (float odd : {largest, INFINITY, NAN})
    for (std::int64_t tokens : {1, 2, 7}) {
      auto number = [&] { return random.below(6) ? random.uniform(-4, 4) : random.below(2) ? odd : -largest; };
      Buffer dY = Buffer(tokens, 11, DType::bf16).fill(number), X = Buffer(tokens, 40, DType::bf16).fill(number);
      Term term = Outer{dY.view(), X.view()};
      Expression G = {11, 40, {&term, 1}};
      SerialExecutor serial;
      for (Target target : available_targets())
        EXPECT_TRUE(same_numbers(run_materialize({serial, target}, G).numbers(), defined_gradient(G)))
            << name_of(target) << ", " << odd << ", " << tokens << " tokens";
    }
}

}  // namespace
}  // namespace forge::cpu
