#include "forge/rules/schedule_free.h"

#include <gtest/gtest.h>

#include <cmath>

#include "forge/base/scalar.h"
#include "forge/base/testing/random.h"
#include "forge/rules/list.h"

namespace forge::rules {
namespace {

// The words of Scalar over float64.
struct Double {
  double x;
  Double() = default;
  explicit Double(double value) : x(value) {}
  friend Double operator+(Double a, Double b) { return Double(a.x + b.x); }
  friend Double operator*(Double a, Double b) { return Double(a.x * b.x); }
  friend Double operator/(Double a, Double b) { return Double(a.x / b.x); }
  friend Double operator-(Double a) { return Double(-a.x); }
  friend Double fma(Double a, Double b, Double c) { return Double(std::fma(a.x, b.x, c.x)); }
  friend Double sqrt(Double a) { return Double(std::sqrt(a.x)); }
};

// The authors' first form, AdamWScheduleFreeReference: z, x and y.
struct Reference {
  double z, x, y, v = 0, weight_sum = 0, lr_max = -1;
  explicit Reference(double start) : z(start), x(start), y(start) {}

  void step(const ScheduleFreeAdamWOptions& o, double g, int k) {
    double lr = k < o.warmup_steps ? o.lr * (k + 1) / o.warmup_steps : o.lr;
    lr_max = std::max(lr, lr_max);
    double weight = std::pow(k + 1, o.r) * std::pow(lr_max, o.weight_lr_power);
    weight_sum += weight;
    double c = weight / weight_sum;
    v = o.beta2 * v + (1 - o.beta2) * g * g;
    z -= lr * o.weight_decay * y;
    z -= lr * g / (std::sqrt(v / (1 - std::pow(o.beta2, k + 1))) + o.eps);
    x = (1 - c) * x + c * z;
    y = o.beta1 * x + (1 - o.beta1) * z;
  }
};

TEST(ScheduleFree, TheDifferenceCarriesZAndX) {
  const ScheduleFreeAdamWOptions o = {.lr = 0.05, .beta1 = 0.8, .weight_decay = 0.1, .warmup_steps = 10, .r = 0.5};
  testing::Random random(5);
  Reference reference(1.5);
  Double y(1.5), moments[2] = {Double(0), Double(0)};
  Progress progress;
  for (int k = 0; k < 200; ++k, progress = next_progress<ScheduleFreeAdamW>(o, progress)) {
    double g = random.uniform(-0.5, 1);
    reference.step(o, g, k);
    ScheduleFreeAdamW::update(y, Double(g), moments, ScheduleFreeAdamW::prepare(o, progress));
    // What the constants lose in fp32, over 200 updates.
    constexpr double kTolerance = 200 * 0x1p-24;
    Double d = moments[0], ratio(schedule_free_ratio(o.beta1));
    ASSERT_NEAR(y.x, reference.y, kTolerance);
    ASSERT_NEAR(y.x + d.x, reference.z, kTolerance);
    ASSERT_NEAR(schedule_free_x(y, d, ratio).x, reference.x, kTolerance);
    ASSERT_NEAR(schedule_free_y(schedule_free_x(y, d, ratio), d, ratio).x, y.x, 1e-12);
  }
  EXPECT_GT(std::abs(reference.z - reference.x), 0.1) << "the test has to tell z, x and y apart";
}

TEST(ScheduleFree, TheFirstUpdateEndsWhereAllThreeAreOne) {
  Scalar w(1.f), d(0.f);
  ScheduleFreeSGD::update(w, Scalar(2.f), &d, ScheduleFreeSGD::prepare({.lr = 0.25}, {}));
  EXPECT_EQ(w.x, 0.5f);
  EXPECT_EQ(d.x, 0.f);
}

TEST(ScheduleFree, WithoutALearningRateNothingIsAveraged) {
  ScheduleFreeSGDOptions o = {.lr = 0};
  Scalar w(1.f), d(0.5f);
  ScheduleFreeSGD::update(w, Scalar(2.f), &d, ScheduleFreeSGD::prepare(o, next_progress<ScheduleFreeSGD>(o, {})));
  EXPECT_EQ(w.x, 1.f);
  EXPECT_EQ(d.x, 0.5f);
}

}  // namespace
}  // namespace forge::rules
