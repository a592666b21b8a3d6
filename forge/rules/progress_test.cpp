// What rules remember beside their moments.
#include <gtest/gtest.h>

#include <cmath>

#include "forge/base/scalar.h"
#include "forge/rules/list.h"

namespace forge {
namespace {

using namespace rules;

TEST(Progress, CountsUpdates) {
  RuleList::for_each([]<class Rule>() {
    typename Rule::Options options;
    EXPECT_EQ(next_progress<Rule>(options, next_progress<Rule>(options, {})).step, 3) << Rule::kName;
  });
}

TEST(Progress, OfNAdamIsAProductInFp32) {
  NAdamOptions o = {.momentum_decay = 0.1};
  Progress second = next_progress<NAdam>(o, {}), third = next_progress<NAdam>(o, second);
  float mu_1 = static_cast<float>(NAdam::mu(o, 1)), mu_2 = static_cast<float>(NAdam::mu(o, 2));
  EXPECT_EQ(second.scalars[0], mu_1);
  EXPECT_EQ(third.scalars[0], mu_1 * mu_2);
}

TEST(Progress, OfAsgdTakesANewLearningRateOneUpdateLate) {
  AsgdOptions slow = {.lr = 0.25, .lambd = 0}, fast = {.lr = 0.5, .lambd = 0};
  Progress second = next_progress<Asgd>(slow, {});
  EXPECT_EQ(Asgd::prepare(fast, second).minus_eta, -0.25f);
  EXPECT_EQ(Asgd::prepare(fast, next_progress<Asgd>(fast, second)).minus_eta, -0.5f);
}

TEST(Progress, OfAsgdBeginsToAverageAfterT0) {
  AsgdOptions o = {.t0 = 2};
  Progress p;
  for (double mu : {1.0, 1.0, 1.0, 1.0, 0.5, 1 / 3.0}) {
    EXPECT_EQ(p.step == 1 ? 1 : p.scalars[1], static_cast<float>(mu)) << p.step;
    p = next_progress<Asgd>(o, p);
  }
}

TEST(Progress, OfRpropReadsTheLearningRateOnce) {
  Scalar w(0.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
  Rprop::update(w, Scalar(1.f), moments, Rprop::prepare({.lr = 0.25}, 1));
  EXPECT_EQ(w.x, -0.25f);
  Rprop::update(w, Scalar(1.f), moments, Rprop::prepare({.lr = 40, .etaplus = 2}, 2));
  EXPECT_EQ(w.x, -0.75f);
}

TEST(Progress, OfScheduleFreeKeepsTheLargestRate) {
  ScheduleFreeSGDOptions fast = {.lr = 4, .weight_lr_power = 1}, slow = {.lr = 1, .weight_lr_power = 1};
  Progress second = next_progress<ScheduleFreeSGD>(fast, {}), third = next_progress<ScheduleFreeSGD>(slow, second);
  EXPECT_EQ(second.scalars, (std::array<double, 2>{4, 4}));
  EXPECT_EQ(third.scalars, (std::array<double, 2>{8, 4}));
}

}  // namespace
}  // namespace forge
