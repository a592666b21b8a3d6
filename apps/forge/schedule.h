#pragma once

#include <cstdint>

namespace forge::app {

// Rises in a line over `warmup` steps to `peak`, then follows half a cosine down to `floor` at the last step.
struct LearningRate {
  double peak = 1e-3;
  double floor = 0;
  std::int64_t warmup = 0;
  std::int64_t steps = 1;

  double at(std::int64_t step) const;  // step 1 … steps
};

}  // namespace forge::app
