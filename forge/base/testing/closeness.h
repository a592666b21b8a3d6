#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"

namespace forge::testing {

// Contract 8's unit: |ΔW − ΔW₆₄| / (ulp(W_old) + ulp(largest term of ΔW)), and the same for the moments.
inline double units(double error, double old_value, double largest_term) {
  return std::abs(error) / (ulp(old_value) + ulp(largest_term));
}

// Compares a rule with its formula over random weights and gradients.
struct Closeness {
  double low = -6;     // weights lie in [10^low, 10]
  int weights = 2000;  // each with gradients of about one magnitude, which differs between weights

  // The worst unit; every update is compared given the state that the rule itself left. NaN where a result is.
  //   steps[t − 1]: the constants of update t;   start(random, magnitude, moments): before the first
  //   formula(w, g, moments, t): what update t does in float64: .change of w and .moment[k] after it, each a .value and
  //   the .largest of the terms that it is a sum of
  template <class Rule, class Start, class Formula>
  double worst_units(const std::vector<typename Rule::Step>& steps, const Start& start, const Formula& formula) const {
    using Expected = std::invoke_result_t<Formula, double, double, const double*, std::int64_t>;
    constexpr std::size_t kMoments = Rule::kMoments.size(), kMost = std::extent_v<decltype(Expected::moment)>;
    static_assert(kMoments <= kMost);
    Random random(7);
    double worst = 0;
    auto see = [&](double unit) {
      if (!std::isnan(worst) && !(unit <= worst)) worst = unit;
    };
    for (int i = 0; i < weights; ++i) {
      Scalar w(random.log_uniform(low, 1)), moments[kMost];
      for (Scalar& m : moments) m = Scalar(0.f);
      double magnitude = -7 + 9 * random.unit();
      start(random, magnitude, moments);
      for (std::size_t t = 1; t <= steps.size(); ++t) {
        float g = random.log_uniform(magnitude - 1, magnitude);
        double w_old = w.x, old[kMost];
        for (std::size_t k = 0; k < kMost; ++k) old[k] = moments[k].x;
        Expected expected = formula(w_old, static_cast<double>(g), old, static_cast<std::int64_t>(t));
        Rule::update(w, Scalar(g), moments, steps[t - 1]);
        see(units(w.x - w_old - expected.change.value, w_old, expected.change.largest));
        for (std::size_t k = 0; k < kMoments; ++k)
          see(units(moments[k].x - expected.moment[k].value, old[k], expected.moment[k].largest));
        if (std::isnan(worst)) return worst;
      }
    }
    return worst;
  }
};

}  // namespace forge::testing
