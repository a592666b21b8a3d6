#include "apps/forge/schedule.h"

#include <gtest/gtest.h>

namespace forge::app {
namespace {

TEST(LearningRate, RisesThenFallsToTheFloor) {
  const LearningRate lr{.peak = 1, .floor = 0.1, .warmup = 4, .steps = 9};
  EXPECT_DOUBLE_EQ(lr.at(1), 0.25);
  EXPECT_DOUBLE_EQ(lr.at(4), 1);
  EXPECT_DOUBLE_EQ(lr.at(5), 1);
  EXPECT_DOUBLE_EQ(lr.at(7), 0.55);  // half of the cosine
  EXPECT_DOUBLE_EQ(lr.at(9), 0.1);
}

TEST(LearningRate, IsConstantWhereTheFloorIsThePeak) {
  const LearningRate lr{.peak = 1, .floor = 1, .warmup = 0, .steps = 5};
  for (int step = 1; step <= 5; ++step) EXPECT_DOUBLE_EQ(lr.at(step), 1);
}

TEST(LearningRate, OfOneStepIsThePeak) { EXPECT_DOUBLE_EQ((LearningRate{.peak = 2, .steps = 1}).at(1), 2); }

TEST(LearningRate, OfWarmupAloneOnlyRises) {
  EXPECT_DOUBLE_EQ((LearningRate{.peak = 2, .warmup = 4, .steps = 4}).at(4), 2);
}

}  // namespace
}  // namespace forge::app
