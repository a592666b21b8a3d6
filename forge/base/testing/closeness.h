#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"

namespace forge::testing {

// What one step does to one weight, in float64: the change of w and the new moments, each with the largest of the
// terms that it is a sum of.
struct Step64 {
  double change = 0, largest_term = 0;
  double moment[2] = {}, largest_moment_term[2] = {};
};

// Contract 8's unit: |ΔW − ΔW₆₄| / (ulp(W_old) + ulp(largest term of ΔW)), and the same for the moments.
inline double units(double error, double old_value, double largest_term) {
  return std::abs(error) / (ulp(old_value) + ulp(largest_term));
}

// The worst unit of a rule over random weights in [10^low, 10] and gradients of many magnitudes, 5 steps each; every
// step is compared given the state that the rule itself left.
//   prepare(step) → Rule::Step;   reference(w, g, moments, step) → Step64
template <class Rule, class Prepare, class Reference>
double worst_units(double low, const Prepare& prepare, const Reference& reference, int weights = 2000) {
  Random random(7);
  double worst = 0;
  for (int i = 0; i < weights; ++i) {
    Scalar w(random.log_uniform(low, 1)), moments[2] = {Scalar(0.f), Scalar(0.f)};
    double magnitude = -7 + 9 * random.unit();
    for (std::int64_t step = 1; step <= 5; ++step) {
      float g = random.log_uniform(magnitude - 1, magnitude);
      double w_old = w.x, old[2] = {moments[0].x, moments[1].x};
      Step64 expected = reference(w_old, static_cast<double>(g), old, step);
      Rule::update(w, Scalar(g), moments, prepare(step));
      worst = std::max(worst, units(w.x - w_old - expected.change, w_old, expected.largest_term));
      for (int k = 0; k < Rule::kMoments; ++k)
        worst = std::max(worst, units(moments[k].x - expected.moment[k], old[k], expected.largest_moment_term[k]));
    }
  }
  return worst;
}

}  // namespace forge::testing
