#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// AdamW of a gradient with less variance (Yuan et al., arXiv 2411.10438), as the authors' class defines it for
// mars_type "mars-adamw" (AGI-Arena/MARS), without its clip by the norm of c, which their CUDA kernel has not either:
//   c = g + gamma · β₁ / (1 − β₁) · (g − last_grad)
//   m ← β₁ m + (1 − β₁) c,   c₁ = 1 − β₁ᵗ
//   v ← β₂ v + (1 − β₂) c²,  c₂ = 1 − β₂ᵗ
//   w ← (1 − lr · weight_decay) w − (lr / c₁) · m / (√v / √c₂ + eps)   amsgrad: of the largest v so far
//   last_grad ← g                                                      0 before the first update
// With is_approx false, last_grad is what the caller puts there: this batch's gradient at the weights before.
struct MarsOptions {
  static constexpr const char* kName = "MARS";
  double lr = 3e-3;
  double beta1 = 0.95;
  double beta2 = 0.99;
  double eps = 1e-8;
  double weight_decay = 0;
  bool amsgrad = false;
  double gamma = 0.025;
  bool is_approx = true;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"amsgrad"}, o.amsgrad);
    f(Field{"gamma"}, o.gamma);
    f(Field{"is_approx"}, o.is_approx);
  }
};

namespace rules {

template <bool kAmsgrad>
struct MarsOf {
  using Options = MarsOptions;
  static constexpr const char* kName = kAmsgrad ? "mars_amsgrad" : "mars";
  static constexpr auto kMoments = [] {
    constexpr Moment kFirst{"exp_avg"}, kSecond{"exp_avg_sq", Sign::not_negative}, kLast{"last_grad"};
    if constexpr (kAmsgrad)
      return std::array{kFirst, kSecond, kLast, Moment{"max_exp_avg_sq", Sign::not_negative}};
    else
      return std::array{kFirst, kSecond, kLast};
  }();

  struct Step {
    float decay;
    float correction;  // gamma · β₁ / (1 − β₁)
    AdamMoments moments;
    float inverse_sqrt_c2, eps;
    float step_size;  // lr / c₁
    bool is_approx;
  };
  static bool fits(const Options& o) { return o.amsgrad == kAmsgrad; }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.decay = static_cast<float>(1 - o.lr * o.weight_decay),
            .correction = static_cast<float>(o.gamma * o.beta1 / (1 - o.beta1)),
            .moments = AdamMoments(o.beta1, o.beta2),
            .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(bias_correction(o.beta2, p.step))),
            .eps = static_cast<float>(o.eps),
            .step_size = static_cast<float>(o.lr / bias_correction(o.beta1, p.step)),
            .is_approx = o.is_approx};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V& last = moment[2];
    V c = fma(V(s.correction), g - last, g);
    s.moments.update(c, moment[0], moment[1]);
    V v = moment[1];
    if constexpr (kAmsgrad) v = moment[3] = max(moment[3], v);
    V change = V(s.step_size) * moment[0] / fma(sqrt(v), V(s.inverse_sqrt_c2), V(s.eps));
    w = fma(V(s.decay), w, -change);
    if (s.is_approx) last = g;
  }
};

using Mars = MarsOf<false>;
using MarsAmsgrad = MarsOf<true>;

}  // namespace rules
}  // namespace forge
