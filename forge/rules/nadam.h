#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// Adam with Nesterov momentum (Dozat 2016), as torch.optim.NAdam defines it:
//   μₜ = β₁ (1 − ½ · 0.96^(t · momentum_decay)),   Πₜ = μ₁ μ₂ … μₜ
//   g ← g + weight_decay · w, or w ← (1 − lr · weight_decay) w if decoupled
//   m ← β₁ m + (1 − β₁) g
//   v ← β₂ v + (1 − β₂) g²
//   w ← w − lr [ (1 − μₜ) / (1 − Πₜ) · g + μₜ₊₁ / (1 − Πₜ μₜ₊₁) · m ] / (√(v / (1 − β₂ᵗ)) + eps)
struct NAdamOptions {
  static constexpr const char* kName = "NAdam";
  double lr = 2e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double momentum_decay = 4e-3;
  bool decoupled_weight_decay = false;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"momentum_decay", Bounds::not_negative}, o.momentum_decay);
    f(Field{"decoupled_weight_decay"}, o.decoupled_weight_decay);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct NAdam {
  using Options = NAdamOptions;
  static constexpr const char* kName = "nadam";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative}};
  static constexpr std::array kScalars = {"mu_product"};  // Π of the updates before this one

  struct Step {
    Decay decay;
    AdamMoments moments;
    float inverse_sqrt_c2, eps;
    float of_g, of_m;
    bool maximize;
  };
  static double mu(const Options& o, std::int64_t t) {
    return o.beta1 * (1 - 0.5 * std::pow(0.96, static_cast<double>(t) * o.momentum_decay));
  }
  // torch keeps the product in fp32.
  static float mu_product(const Options& o, const Progress& p) {
    float before = p.step == 1 ? 1.f : static_cast<float>(p.scalars[0]);
    return before * static_cast<float>(mu(o, p.step));
  }
  static Progress next(const Options& o, Progress p) {
    p.scalars[0] = mu_product(o, p);
    return p;
  }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    double product = mu_product(o, p), following = mu(o, p.step + 1);
    return {.decay = Decay(o.lr, o.weight_decay, o.decoupled_weight_decay),
            .moments = AdamMoments(o.beta1, o.beta2),
            .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(bias_correction(o.beta2, p.step))),
            .eps = static_cast<float>(o.eps),
            .of_g = static_cast<float>(o.lr * (1 - mu(o, p.step)) / (1 - product)),
            .of_m = static_cast<float>(o.lr * following / (1 - product * following)),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    if (s.maximize) g = -g;
    g = fma(V(s.decay.l2), w, g);
    s.moments.update(g, moment[0], moment[1]);
    V denominator = fma(sqrt(moment[1]), V(s.inverse_sqrt_c2), V(s.eps));
    V change = fma(V(s.of_g), g, V(s.of_m) * moment[0]) / denominator;
    w = fma(V(s.decay.keep), w, -change);
  }
};

}  // namespace rules
}  // namespace forge
