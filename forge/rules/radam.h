#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// Rectified Adam (Liu et al., arXiv 1908.03265), as torch.optim.RAdam defines it: the step of the first moment alone,
// until enough gradients were seen that the second moment's variance can be rectified.
//   g ← g + weight_decay · w, or w ← (1 − lr · weight_decay) w if decoupled
//   m ← β₁ m + (1 − β₁) g,   c₁ = 1 − β₁ᵗ
//   v ← β₂ v + (1 − β₂) g²,  c₂ = 1 − β₂ᵗ
//   ρ∞ = 2 / (1 − β₂) − 1,   ρ = ρ∞ − 2 t β₂ᵗ / c₂
//   if ρ > 5:  r = √( (ρ − 4)(ρ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ) )
//              w ← w − lr / c₁ · r √c₂ · m / (√v + eps)
//   else:      w ← w − lr / c₁ · m
struct RAdamOptions {
  static constexpr const char* kName = "RAdam";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decoupled_weight_decay = false;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"decoupled_weight_decay"}, o.decoupled_weight_decay);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct RAdam {
  using Options = RAdamOptions;
  static constexpr const char* kName = "radam";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative}};

  struct Step {
    Decay decay;
    AdamMoments moments;
    float eps, step_size;
    bool rectified, maximize;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    double t = static_cast<double>(p.step), c2 = bias_correction(o.beta2, p.step);
    double rho_inf = 2 / (1 - o.beta2) - 1, rho = rho_inf - 2 * t * std::pow(o.beta2, t) / c2;
    bool rectified = rho > 5;
    double step_size = o.lr / bias_correction(o.beta1, p.step);
    if (rectified) step_size *= std::sqrt(c2 * (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho));
    return {.decay = Decay(o.lr, o.weight_decay, o.decoupled_weight_decay),
            .moments = AdamMoments(o.beta1, o.beta2),
            .eps = static_cast<float>(o.eps),
            .step_size = static_cast<float>(step_size),
            .rectified = rectified,
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    if (s.maximize) g = -g;
    g = fma(V(s.decay.l2), w, g);
    s.moments.update(g, moment[0], moment[1]);
    V change = V(s.step_size) * moment[0];
    if (s.rectified) change = change / (sqrt(moment[1]) + V(s.eps));
    w = fma(V(s.decay.keep), w, -change);
  }
};

}  // namespace rules
}  // namespace forge
