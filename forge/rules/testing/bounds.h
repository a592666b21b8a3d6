#pragma once

#include <map>
#include <string>

namespace forge::testing {

// How many units (closeness.h) a rule's update may be from its formula.
struct Bound {
  double units;                  // where weights are not far below a step: in [0.1, 10]
  double units_of_tiny_weights;  // in [1e-6, 10]: nothing hides behind ulp(W)
};

// Measured over 800,000 updates of each case in testing/cases.h, and rounded up. What has more terms is farther: Adan's
// step is a sum of two averages, Adadelta's a product of two roots of sums; MARS multiplies a difference of gradients.
inline Bound bound_of(const std::string& rule) {
  static const std::map<std::string, Bound> all = {
      {"sgd", {2, 2}},
      {"sgd_momentum", {6, 5}},
      {"adam", {6, 6}},
      {"adam_amsgrad", {6, 6}},
      {"adamw", {3, 7}},
      {"adamw_amsgrad", {2, 6}},
      {"nadam", {5, 6}},
      {"radam", {6, 7}},
      {"adamax", {4, 5}},
      {"adagrad", {5, 4}},
      {"adadelta", {9, 13}},
      {"rmsprop", {5, 6}},
      {"rmsprop_momentum", {6, 7}},
      {"rmsprop_centered", {6, 6}},
      {"rmsprop_centered_momentum", {4, 4}},
      {"rprop", {2, 2}},
      {"asgd", {4, 4}},
      {"lion", {2, 2}},
      {"signum", {2, 2}},
      {"adan", {8, 11}},
      {"ademamix", {3, 6}},
      {"adopt", {5, 6}},
      {"schedule_free_adamw", {7, 6}},
      {"schedule_free_adamw_inner", {8, 8}},
      {"schedule_free_sgd", {5, 6}},
      {"sophia_g", {2, 5}},
      {"sophia_hessian", {2, 2}},
      {"mars", {8, 9}},
      {"mars_amsgrad", {5, 6}},
      {"grams", {2, 6}},
      {"cautious_adamw", {2, 6}},
  };
  return all.at(rule);
}

}  // namespace forge::testing
