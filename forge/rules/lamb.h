#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// Adam whose step is as long as the weight (You et al., arXiv 1904.00962), as timm's Lamb defines it:
//   m ← β₁ m + (1 − β₁) g,   c₁ = 1 − β₁ᵗ      without grad_averaging: m ← β₁ m + g
//   v ← β₂ v + (1 − β₂) g²,  c₂ = 1 − β₂ᵗ      without bias_correction c₁ and c₂ are 1
//   r = (m / c₁) / (√v / √c₂ + eps) + weight_decay · w
//   w ← w − lr ‖w‖ / ‖r‖ · r
// The ratio is 1 where a norm is 0, and without decay unless always_adapt is set; trust_clip lets it be at most 1. With
// decoupled_decay, w ← (1 − lr · weight_decay) w comes before r, which has no decay then.
// timm's max_grad_norm clips all weights' gradients together, which no rule sees: clip_grad_norm_ does that.
// Two passes: the moments, ‖w‖ and ‖r‖; the weight, from the moments as they are stored. The second needs no gradient.
struct LambOptions {
  static constexpr const char* kName = "LAMB";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 0.01;
  bool bias_correction = true;
  bool grad_averaging = true;
  bool trust_clip = false;
  bool always_adapt = false;
  bool decoupled_decay = false;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"bias_correction"}, o.bias_correction);
    f(Field{"grad_averaging"}, o.grad_averaging);
    f(Field{"trust_clip"}, o.trust_clip);
    f(Field{"always_adapt"}, o.always_adapt);
    f(Field{"decoupled_decay"}, o.decoupled_decay);
  }
};

namespace rules {

struct Lamb {
  using Options = LambOptions;
  static constexpr const char* kName = "lamb";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative}};
  static constexpr bool kReadsGradient = false, kWritesMoments = false;

  struct Step {
    Decay decay;
    float inverse_c1, inverse_sqrt_c2, eps;
    float minus_step;  // −lr · ratio

    // r, of a weight that has decayed already.
    template <class V>
    FORGE_INLINE V direction(V w, const V* moment) const {
      V adam = V(inverse_c1) * moment[0] / fma(sqrt(moment[1]), V(inverse_sqrt_c2), V(eps));
      return fma(V(decay.l2), w, adam);
    }
  };

  template <class V>
  FORGE_INLINE static void update(V& w, V, V* moment, const Step& s) {
    w = V(s.decay.keep) * w;
    w = fma(V(s.minus_step), s.direction(w, moment), w);
  }
};

struct LambMoments {
  using Options = LambOptions;
  using Next = Lamb;
  static constexpr const char* kName = "lamb_moments";
  static constexpr std::array kMoments = Lamb::kMoments;
  static constexpr int kSums = 2;  // w, r
  static constexpr bool kWritesWeight = false;

  struct Step {
    Lamb::Step rest;
    AdamMoments moments;
    float beta1;
    bool averages, adapts, clips;
    double lr;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    auto correction = [&](double beta) { return o.bias_correction ? bias_correction(beta, p.step) : 1; };
    return {.rest = {.decay = Decay(o.lr, o.weight_decay, o.decoupled_decay),
                     .inverse_c1 = static_cast<float>(1 / correction(o.beta1)),
                     .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(correction(o.beta2))),
                     .eps = static_cast<float>(o.eps),
                     .minus_step = 0},
            .moments = AdamMoments(o.beta1, o.beta2),
            .beta1 = static_cast<float>(o.beta1),
            .averages = o.grad_averaging,
            .adapts = o.weight_decay != 0 || o.always_adapt,
            .clips = o.trust_clip,
            .lr = o.lr};
  }
  FORGE_INLINE static Lamb::Step next_pass(const Step& s, const Sums& sums) {
    double w = std::sqrt(sums.of_squares[0]), r = std::sqrt(sums.of_squares[1]);
    double ratio = s.adapts && w > 0 && r > 0 ? w / r : 1;
    if (s.clips) ratio = std::min(ratio, 1.0);
    Lamb::Step next = s.rest;
    next.minus_step = static_cast<float>(-ratio * s.lr);
    return next;
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s, V* numbers) {
    V added = fma(V(s.beta1), moment[0], g);
    s.moments.update(g, moment[0], moment[1]);
    if (!s.averages) moment[0] = added;
    numbers[0] = V(s.rest.decay.keep) * w;
    numbers[1] = s.rest.direction(numbers[0], moment);
  }
};

}  // namespace rules
}  // namespace forge
