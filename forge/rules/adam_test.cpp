#include "forge/rules/adam.h"

#include <gtest/gtest.h>

#include <cmath>

#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"

namespace forge::rules {
namespace {

TEST(AdamW, FirstStepMovesByLr) {
  for (float g : {1e-3f, 1.f, -50.f}) {
    Scalar w(0.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
    AdamW::update(w, Scalar(g), moments, AdamW::prepare({.lr = 0.25, .eps = 0}, 1));
    EXPECT_NEAR(w.x, g > 0 ? -0.25 : 0.25, 0x1p-23) << "g = " << g;
  }
}

TEST(AdamW, TwoStepsByHand) {
  // beta1 = beta2 = 1/2, lr = 1, eps = 0, no decay, g = 2 then −2:
  //   m = 1, v = 2, c = 1/2:   w = 0 − 2·1/√4            = −1
  //   m = −1/2, v = 3, c = 3/4: w = −1 + (4/3)·(1/2)/√4  = −1 + 1/3
  AdamWOptions o = {.lr = 1, .beta1 = 0.5, .beta2 = 0.5, .eps = 0, .weight_decay = 0};
  Scalar w(0.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
  AdamW::update(w, Scalar(2.f), moments, AdamW::prepare(o, 1));
  EXPECT_EQ(moments[0].x, 1.f);
  EXPECT_EQ(moments[1].x, 2.f);
  EXPECT_NEAR(w.x, -1, 0x1p-22);
  AdamW::update(w, Scalar(-2.f), moments, AdamW::prepare(o, 2));
  EXPECT_EQ(moments[0].x, -0.5f);
  EXPECT_EQ(moments[1].x, 3.f);
  EXPECT_NEAR(w.x, -2.0 / 3, 0x1p-22);
}

TEST(AdamW, DecaysOnAZeroGradient) {
  Scalar w(8.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
  AdamW::update(w, Scalar(0.f), moments, AdamW::prepare({.lr = 0.5, .weight_decay = 0.5}, 1));
  EXPECT_EQ(w.x, 6.f);
  EXPECT_EQ(moments[0].x, 0.f);
  EXPECT_EQ(moments[1].x, 0.f);
}

TEST(AdamW, MaximizeIsTheNegatedGradient) {
  testing::Random random(3);
  for (int i = 0; i < 1000; ++i) {
    float g = random.wild(), w = random.wild(), m = random.log_uniform(-4, 2), v = std::abs(random.log_uniform(-4, 2));
    Scalar a(w), b(w), ma[2] = {Scalar(m), Scalar(v)}, mb[2] = {Scalar(m), Scalar(v)};
    AdamW::update(a, Scalar(g), ma, AdamW::prepare({.maximize = true}, 3));
    AdamW::update(b, Scalar(-g), mb, AdamW::prepare({}, 3));
    ASSERT_TRUE(testing::same_number(a.x, b.x));
    ASSERT_TRUE(testing::same_number(ma[0].x, mb[0].x));
  }
}

TEST(AdamW, SmallBeta1StartsFromTheGradientAsTorchLerpDoes) {
  // Where β₁ ≤ 1/2 the nearer end is g: a tiny moment beside a large g leaves (1 − β₁) g, one rounding away.
  for (double beta1 : {0.0, 0.25, 0.5}) {
    Scalar w(1.f), moments[2] = {Scalar(0x1p-40f), Scalar(0.f)};
    AdamW::update(w, Scalar(3.f), moments, AdamW::prepare({.beta1 = beta1}, 2));
    EXPECT_EQ(moments[0].x, static_cast<float>((1 - beta1) * 3));
  }
  EXPECT_TRUE(AdamW::prepare({.beta1 = 0.5}, 1).moments.to_g.from_end);
  EXPECT_FALSE(AdamW::prepare({.beta1 = 0.51}, 1).moments.to_g.from_end);
}

TEST(Adam, DecayGoesThroughTheMoments) {
  // g = 1 + ½ · 4 = 3: m = 1.5, v = 4.5, and the step is lr whatever g is.
  Scalar w(4.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
  Adam::update(w, Scalar(1.f), moments,
               Adam::prepare({.lr = 1, .beta1 = 0.5, .beta2 = 0.5, .eps = 0, .weight_decay = 0.5}, 1));
  EXPECT_EQ(moments[0].x, 1.5f);
  EXPECT_EQ(moments[1].x, 4.5f);
  EXPECT_NEAR(w.x, 3, 0x1p-21);
}

TEST(AdamAmsgrad, DividesByTheLargestSecondMomentSoFar) {
  // beta2 = ½: v is 2 and then 1, corrected by ½ and ¾; the larger, 2, stays in the denominator.
  AdamWOptions o = {.lr = 1, .beta1 = 0, .beta2 = 0.5, .eps = 0, .weight_decay = 0, .amsgrad = true};
  Scalar w(0.f), moments[3] = {Scalar(0.f), Scalar(0.f), Scalar(0.f)};
  AdamWAmsgrad::update(w, Scalar(2.f), moments, AdamWAmsgrad::prepare(o, 1));
  w = Scalar(0.f);
  AdamWAmsgrad::update(w, Scalar(0.f), moments, AdamWAmsgrad::prepare(o, 2));
  EXPECT_EQ(moments[1].x, 1.f);
  EXPECT_EQ(moments[2].x, 2.f);
  AdamWAmsgrad::update(w, Scalar(1.f), moments, AdamWAmsgrad::prepare(o, 3));
  EXPECT_NEAR(w.x, -1 / std::sqrt(2 / 0.875), 0x1p-22);
}

}  // namespace
}  // namespace forge::rules
