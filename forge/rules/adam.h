#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Adam (Kingma & Ba, arXiv 1412.6980) as torch.optim.Adam defines it, with decay added to the gradient:
//   g ← g + weight_decay · w
//   m ← β₁ m + (1 − β₁) g                      first moment, bias c₁ = 1 − β₁ᵗ
//   v ← β₂ v + (1 − β₂) g²                     second moment, bias c₂ = 1 − β₂ᵗ
//   w ← w − (lr / c₁) · m / (√v / √c₂ + eps)   amsgrad: of the largest v so far
// or with decoupled decay, as AdamW below.
struct AdamOptions {
  static constexpr const char* kName = "Adam";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool amsgrad = false;
  bool maximize = false;
  bool decoupled_weight_decay = false;

  static void fields(auto& o, auto&& f) {
    shared_fields(o, f);
    f(Field{"decoupled_weight_decay"}, o.decoupled_weight_decay);
  }
  static void shared_fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"amsgrad"}, o.amsgrad);
    f(Field{"maximize"}, o.maximize);
  }
};

// With decoupled decay (Loshchilov & Hutter, arXiv 1711.05101), as torch.optim.AdamW defines it: instead of the first
// line, w ← (1 − lr · weight_decay) w before the step.
struct AdamWOptions {
  static constexpr const char* kName = "AdamW";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-2;
  bool amsgrad = false;
  bool maximize = false;

  static void fields(auto& o, auto&& f) { AdamOptions::shared_fields(o, f); }
};

namespace rules {

// What all of Adam's relatives begin with.
struct AdamMoments {
  Lerp to_g;
  float beta2, one_minus_beta2;

  AdamMoments() = default;
  AdamMoments(double beta1, double b2)
      : to_g(1 - beta1), beta2(static_cast<float>(b2)), one_minus_beta2(static_cast<float>(1 - b2)) {}

  template <class V>
  FORGE_INLINE void update(V g, V& m, V& v) const {
    m = lerp(m, g, to_g);
    update_second(g, v);
  }
  template <class V>
  FORGE_INLINE void update_second(V g, V& v) const {
    v = fma(V(one_minus_beta2) * g, g, V(beta2) * v);
  }
};

template <class OptionsOf, bool kAmsgrad>
struct AdamOf {
  using Options = OptionsOf;
  static constexpr bool kIsAdamW = std::is_same_v<Options, AdamWOptions>;
  static constexpr const char* kName =
      kIsAdamW ? (kAmsgrad ? "adamw_amsgrad" : "adamw") : (kAmsgrad ? "adam_amsgrad" : "adam");
  static constexpr auto kMoments = [] {
    constexpr Moment kFirst{"exp_avg"}, kSecond{"exp_avg_sq", Sign::not_negative};
    if constexpr (kAmsgrad)
      return std::array{kFirst, kSecond, Moment{"max_exp_avg_sq", Sign::not_negative}};
    else
      return std::array{kFirst, kSecond};
  }();

  struct Step {
    Decay decay;
    AdamMoments moments;
    float inverse_sqrt_c2, eps;
    float step_size;  // lr / c₁
    bool maximize;
  };
  static bool fits(const Options& o) { return o.amsgrad == kAmsgrad; }
  static bool is_decoupled(const Options& o) {
    if constexpr (kIsAdamW)
      return true;
    else
      return o.decoupled_weight_decay;
  }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.decay = Decay(o.lr, o.weight_decay, is_decoupled(o)),
            .moments = AdamMoments(o.beta1, o.beta2),
            .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(bias_correction(o.beta2, p.step))),
            .eps = static_cast<float>(o.eps),
            .step_size = static_cast<float>(o.lr / bias_correction(o.beta1, p.step)),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    if (s.maximize) g = -g;
    if constexpr (!kIsAdamW) g = fma(V(s.decay.l2), w, g);
    s.moments.update(g, moment[0], moment[1]);
    V v = moment[1];
    if constexpr (kAmsgrad) v = moment[2] = max(moment[2], v);
    V change = V(s.step_size) * moment[0] / fma(sqrt(v), V(s.inverse_sqrt_c2), V(s.eps));
    w = fma(V(s.decay.keep), w, -change);
  }
};

using Adam = AdamOf<AdamOptions, false>;
using AdamAmsgrad = AdamOf<AdamOptions, true>;
using AdamW = AdamOf<AdamWOptions, false>;
using AdamWAmsgrad = AdamOf<AdamWOptions, true>;

}  // namespace rules
}  // namespace forge
