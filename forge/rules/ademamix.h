#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// AdamW with a second, slow average (Pagliardini, Ablin & Grangier, arXiv 2409.03137), as apple/ml-ademamix defines it:
//   m ← β₁ m + (1 − β₁) g,   c₁ = 1 − β₁ᵗ
//   n ← b n + (1 − b) g
//   v ← β₂ v + (1 − β₂) g²,  c₂ = 1 − β₂ᵗ
//   w ← (1 − lr · weight_decay) w − lr (m / c₁ + a n) / (√v / √c₂ + eps)
// a is alpha, b is β₃; at update t < alpha_warmup, a = t / alpha_warmup · alpha; at update t < beta3_warmup, b lies
// between β₁ and β₃ with f(b) = ln ½ / ln(b + 1e-8) − 1, about its half-life, linear in t. A warm-up of 0 is none.
struct AdEMAMixOptions {
  static constexpr const char* kName = "AdEMAMix";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double beta3 = 0.9999;
  double alpha = 2;
  int beta3_warmup = 0;
  int alpha_warmup = 0;
  double eps = 1e-8;
  double weight_decay = 0;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"beta1", Bounds::below_one, "betas", 0}, o.beta1);
    f(Field{"beta2", Bounds::below_one, "betas", 1}, o.beta2);
    f(Field{"beta3", Bounds::below_one, "betas", 2}, o.beta3);
    f(Field{"alpha", Bounds::not_negative}, o.alpha);
    f(Field{"beta3_warmup", Bounds::not_negative}, o.beta3_warmup);
    f(Field{"alpha_warmup", Bounds::not_negative}, o.alpha_warmup);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
  }
};

namespace rules {

struct AdEMAMix {
  using Options = AdEMAMixOptions;
  static constexpr const char* kName = "ademamix";
  static constexpr std::array kMoments = {Moment{"exp_avg_fast"}, Moment{"exp_avg_slow"},
                                          Moment{"exp_avg_sq", Sign::not_negative}};

  struct Step {
    float decay;
    AdamMoments fast;
    Lerp slow_to_g;
    float inverse_sqrt_c2, eps;
    float of_fast, of_slow;
  };
  static double alpha_at(const Options& o, std::int64_t t) {
    return t < o.alpha_warmup ? static_cast<double>(t) / o.alpha_warmup * o.alpha : o.alpha;
  }
  static double beta3_at(const Options& o, std::int64_t t) {
    if (t >= o.beta3_warmup) return o.beta3;
    auto f = [](double beta) { return std::log(0.5) / std::log(beta + 1e-8) - 1; };
    double done = static_cast<double>(t) / o.beta3_warmup;
    return std::pow(0.5, 1 / ((1 - done) * f(o.beta1) + done * f(o.beta3) + 1));
  }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.decay = static_cast<float>(1 - o.lr * o.weight_decay),
            .fast = AdamMoments(o.beta1, o.beta2),
            .slow_to_g = Lerp(1 - beta3_at(o, p.step)),
            .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(bias_correction(o.beta2, p.step))),
            .eps = static_cast<float>(o.eps),
            .of_fast = static_cast<float>(o.lr / bias_correction(o.beta1, p.step)),
            .of_slow = static_cast<float>(o.lr * alpha_at(o, p.step))};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &fast = moment[0], &slow = moment[1], &v = moment[2];
    s.fast.update(g, fast, v);
    slow = lerp(slow, g, s.slow_to_g);
    V change = fma(V(s.of_fast), fast, V(s.of_slow) * slow) / fma(sqrt(v), V(s.inverse_sqrt_c2), V(s.eps));
    w = fma(V(s.decay), w, -change);
  }
};

}  // namespace rules
}  // namespace forge
