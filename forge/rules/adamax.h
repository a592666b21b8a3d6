#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Adam of the infinity norm (Kingma & Ba, arXiv 1412.6980, section 7.1), as torch.optim.Adamax defines it:
//   g ← g + weight_decay · w
//   m ← β₁ m + (1 − β₁) g
//   u ← max(β₂ u, |g| + eps)
//   w ← w − lr / (1 − β₁ᵗ) · m / u
struct AdamaxOptions {
  static constexpr const char* kName = "Adamax";
  double lr = 2e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct Adamax {
  using Options = AdamaxOptions;
  static constexpr const char* kName = "adamax";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_inf", Sign::not_negative}};

  struct Step {
    float weight_decay;
    Lerp to_g;
    float beta2, eps;
    float step_size;  // lr / (1 − β₁ᵗ)
    bool maximize;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.weight_decay = static_cast<float>(o.weight_decay),
            .to_g = Lerp(1 - o.beta1),
            .beta2 = static_cast<float>(o.beta2),
            .eps = static_cast<float>(o.eps),
            .step_size = static_cast<float>(o.lr / bias_correction(o.beta1, p.step)),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &m = moment[0], &u = moment[1];
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    m = lerp(m, g, s.to_g);
    u = max(V(s.beta2) * u, abs(g) + V(s.eps));  // in this order a NaN of g goes through
    V change = V(s.step_size) * m / u;
    w = w - change;
  }
};

}  // namespace rules
}  // namespace forge
