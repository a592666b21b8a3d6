#pragma once

#include <cmath>
#include <cstdint>

#include "forge/rules/factored.h"

namespace forge {

// Adafactor's second moment with a rate that the weight's size decides (Lv et al., arXiv 2310.10195), as
// OpenLMLab/LOMO's AdaLomo defines it. factored.h has the formulas; with t the number of this update,
//   k = t^decay_rate,  added = eps1,  least_mean = least = 0,  d = clip_threshold
//   rate = lr · max(eps2, rms(w)),  keep = 1 − rate · weight_decay
struct AdaLomoOptions {
  static constexpr const char* kName = "AdaLomo";
  double lr = 1e-3;
  double eps1 = 1e-30;
  double eps2 = 1e-3;
  double clip_threshold = 1;
  double decay_rate = -0.8;
  double weight_decay = 0;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"eps1", Bounds::not_negative, "eps", 0}, o.eps1);
    f(Field{"eps2", Bounds::not_negative, "eps", 1}, o.eps2);
    f(Field{"clip_threshold", Bounds::positive}, o.clip_threshold);
    f(Field{"decay_rate", Bounds::not_positive}, o.decay_rate);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
  }
};

namespace rules {

struct AdaLomoFamily {
  using Options = AdaLomoOptions;
  static constexpr const char* kKeys[] = {"exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"};
  static constexpr const char* kNames[] = {"adalomo_sums", "adalomo", "adalomo_vector_sums", "adalomo_vector"};

  static FactoredPlan plan(const Options& o, std::int64_t step) {
    return {.k = std::pow(static_cast<double>(step), o.decay_rate),
            .added = o.eps1,
            .least_mean = 0,
            .least = 0,
            .rate = o.lr,
            .lowest_rms = o.eps2,
            .d = o.clip_threshold,
            .decay = 0,
            .decay_of_rate = o.weight_decay};
  }
};

using AdaLomo = Factored<AdaLomoFamily>;
using AdaLomoVector = FactoredVector<AdaLomoFamily>;
using AdaLomoSums = FactoredSums<AdaLomoFamily>;
using AdaLomoVectorSums = FactoredVectorSums<AdaLomoFamily>;

}  // namespace rules
}  // namespace forge
