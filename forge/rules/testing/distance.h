#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "forge/base/scalar.h"
#include "forge/rules/list.h"
#include "forge/rules/testing/authors_formulas.h"
#include "forge/rules/testing/terms.h"
#include "forge/rules/testing/torch_formulas.h"

namespace forge::testing {

// Enough for warm-ups, RAdam's rectification and averages that begin late.
constexpr int kUpdates = 8;

template <class Rule>
std::vector<typename Rule::Step> steps_of(const typename Rule::Options& options, int n = kUpdates) {
  std::vector<typename Rule::Step> steps;
  Progress progress;
  for (int t = 1; t <= n; ++t, progress = next_progress<Rule>(options, progress))
    steps.push_back(Rule::prepare(options, progress));
  return steps;
}

// Moments that the rule itself does not fill: a Hessian with which some of the steps are clipped, and the gradient at
// the weights before.
template <class Rule>
void start(const typename Rule::Options& options, auto& random, double magnitude, Scalar* moments) {
  if constexpr (std::is_base_of_v<rules::SophiaG, Rule>)
    moments[1] =
        Scalar(std::abs(random.log_uniform(magnitude - 3, magnitude)) / static_cast<float>(options.rho * options.bs));
  if constexpr (std::is_same_v<typename Rule::Options, MarsOptions>)
    if (!options.is_approx) moments[2] = Scalar(random.log_uniform(magnitude - 1, magnitude));
}

// The worst unit of a rule that follows the options, or claims to, from the formula for the options, as
// base/testing/closeness.h measures it.
template <class Rule>
double distance(const typename Rule::Options& options, const auto& closeness) {
  return closeness.template worst_units<Rule>(
      steps_of<Rule>(options),
      [&](auto& random, double magnitude, Scalar* moments) { start<Rule>(options, random, magnitude, moments); },
      [&](double w, double g, const double* moments, std::int64_t step) {
        Given given = {w, g, moments, step};
        if constexpr (std::is_base_of_v<rules::SophiaHessian, Rule>)
          return hessian_formula(options, given);
        else
          return formula(options, given);
      });
}

}  // namespace forge::testing
