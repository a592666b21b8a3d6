#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge::rules {

// What AdamW was in early versions of transformers, and what was made from it still is: eps is added to the root that
// is not corrected.
//   m ← β₁ m + (1 − β₁) g,   c₁ = 1 − β₁ᵗ
//   v ← β₂ v + (1 − β₂) g²,  c₂ = 1 − β₂ᵗ
//   w ← (1 − lr · weight_decay) w − lr √c₂ / c₁ · direction / (√v + eps)
// Without correct_bias c₁ and c₂ are 1.
// A rule of this kind gives its direction: V direction(g, m).
template <class Rule, class OptionsOf>
struct UncorrectedAdamW {
  using Options = OptionsOf;
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative}};

  struct Step {
    float decay;
    AdamMoments moments;
    float eps;
    float step_size;  // lr √c₂ / c₁
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    double corrected = std::sqrt(bias_correction(o.beta2, p.step)) / bias_correction(o.beta1, p.step);
    return {.decay = static_cast<float>(1 - o.lr * o.weight_decay),
            .moments = AdamMoments(o.beta1, o.beta2),
            .eps = static_cast<float>(o.eps),
            .step_size = static_cast<float>(o.correct_bias ? o.lr * corrected : o.lr)};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    s.moments.update(g, moment[0], moment[1]);
    V change = V(s.step_size) * Rule::direction(g, moment[0]) / (sqrt(moment[1]) + V(s.eps));
    w = fma(V(s.decay), w, -change);
  }
};

}  // namespace forge::rules
