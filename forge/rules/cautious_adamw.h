#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// AdamW that moves only where the gradient agrees (Liang et al., arXiv 2411.16085), as the authors' class defines it
// with foreach=False (kyleliang919/C-Optim, c_adamw.py), but for their rescaling by the mean of the mask over the
// tensor:
//   m ← β₁ m + (1 − β₁) g,   c₁ = 1 − β₁ᵗ
//   v ← β₂ v + (1 − β₂) g²,  c₂ = 1 − β₂ᵗ
//   w ← (1 − lr · weight_decay) w − lr √c₂ / c₁ · (m where m g > 0, else 0) / (√v + eps)
// eps is added to the root that is not corrected; without correct_bias c₁ and c₂ are 1.
struct CautiousAdamWOptions {
  static constexpr const char* kName = "CautiousAdamW";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 0;
  bool correct_bias = true;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"correct_bias"}, o.correct_bias);
  }
};

namespace rules {

struct CautiousAdamW {
  using Options = CautiousAdamWOptions;
  static constexpr const char* kName = "cautious_adamw";
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
    V direction = select(moment[0] * g > V(0.f), moment[0], V(0.f));
    V change = V(s.step_size) * direction / (sqrt(moment[1]) + V(s.eps));
    w = fma(V(s.decay), w, -change);
  }
};

}  // namespace rules
}  // namespace forge
