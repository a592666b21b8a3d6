#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "forge/rules/factored.h"

namespace forge {

// A second moment of one number for each row and column (Shazeer & Stern, arXiv 1804.04235), as torch.optim.Adafactor
// defines it. factored.h has the formulas; with t the number of this update,
//   k = t^beta2_decay,  added = 0,  least_mean = eps1,  least = eps1²
//   rate = min(lr, 1 / √t) · max(eps2, rms(w)),  keep = 1 − lr · weight_decay
struct AdafactorOptions {
  static constexpr const char* kName = "Adafactor";
  double lr = 1e-2;
  double beta2_decay = -0.8;
  double eps1 = -1;  // below 0: the epsilon of the weight's dtype, as torch's None
  double eps2 = 1e-3;
  double d = 1;
  double weight_decay = 0;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"beta2_decay", Bounds::not_positive}, o.beta2_decay);
    f(Field{"eps1", Bounds::none, "eps", 0}, o.eps1);
    f(Field{"eps2", Bounds::not_negative, "eps", 1}, o.eps2);
    f(Field{"d", Bounds::one_or_more}, o.d);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct AdafactorFamily {
  using Options = AdafactorOptions;
  static constexpr const char* kKeys[] = {"row_var", "col_var", "variance"};
  static constexpr const char* kNames[] = {"adafactor_sums", "adafactor", "adafactor_vector_sums", "adafactor_vector"};

  static FactoredPlan plan(const Options& o, std::int64_t step) {
    auto t = static_cast<double>(step);
    double rate = std::min(o.lr, 1 / std::sqrt(t));
    return {.k = std::pow(t, o.beta2_decay),
            .added = 0,
            .least_mean = o.eps1,
            .least = o.eps1 * o.eps1,
            .rate = o.maximize ? -rate : rate,
            .lowest_rms = o.eps2,
            .d = o.d,
            .decay = o.lr * o.weight_decay,
            .decay_of_rate = 0};
  }
};

using Adafactor = Factored<AdafactorFamily>;
using AdafactorVector = FactoredVector<AdafactorFamily>;
using AdafactorSums = FactoredSums<AdafactorFamily>;
using AdafactorVectorSums = FactoredVectorSums<AdafactorFamily>;

}  // namespace rules
}  // namespace forge
