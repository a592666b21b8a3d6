#include "apps/forge/schedule.h"

#include <cmath>
#include <numbers>

namespace forge::app {

double LearningRate::at(std::int64_t step) const {
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  if (steps <= warmup + 1) return peak;
  const double done = static_cast<double>(step - warmup - 1) / static_cast<double>(steps - warmup - 1);
  return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * done));
}

}  // namespace forge::app
