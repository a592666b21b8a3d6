#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "forge/base/error.h"
#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// AdamW whose learning rate falls where gradients are larger than their averages expect (Wortsman et al., arXiv
// 2304.13013), as warner-benjamin/optimi's StableAdamW defines it:
//   β̂ᵢ = (βᵢ − βᵢᵗ) / (1 − βᵢᵗ)
//   m ← β̂₁ m + (1 − β̂₁) g,   v ← β̂₂ v + (1 − β̂₂) g²
//   η = lr / max(1, rms),     rms² = the mean of g² / max(v, eps²) over the weight
//   w ← (1 − η · weight_decay) w − η m / (√v + eps)
// With decouple_lr the decay is 1 − η / max_lr · weight_decay.
// Two passes: the moments and rms; the weight, from the moments as they are stored. The second needs no gradient.
struct StableAdamWOptions {
  static constexpr const char* kName = "StableAdamW";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double eps = 1e-6;
  double weight_decay = 1e-2;
  bool decouple_lr = false;
  double max_lr = 0;  // the highest that a schedule gives; read where decouple_lr is set

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"decouple_lr"}, o.decouple_lr);
    f(Field{"max_lr", Bounds::not_negative}, o.max_lr);
  }
};

namespace rules {

struct StableAdamW {
  using Options = StableAdamWOptions;
  static constexpr const char* kName = "stable_adamw";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative}};
  static constexpr bool kReadsGradient = false, kWritesMoments = false;

  struct Step {
    float keep, minus_lr, eps;
  };

  template <class V>
  FORGE_INLINE static void update(V& w, V, V* moment, const Step& s) {
    w = fma(V(s.keep), w, V(s.minus_lr) * moment[0] / (sqrt(moment[1]) + V(s.eps)));
  }
};

struct StableAdamWMoments {
  using Options = StableAdamWOptions;
  using Next = StableAdamW;
  static constexpr const char* kName = "stable_adamw_moments";
  static constexpr std::array kMoments = StableAdamW::kMoments;
  static constexpr int kSums = 1;
  static constexpr bool kWritesWeight = false;

  struct Step {
    AdamMoments moments;
    float eps;
    double lr, decay;  // decay: of the weight, for each unit of learning rate
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    check(!o.decouple_lr || o.max_lr > 0, "StableAdamW: decouple_lr needs max_lr, the highest lr that is scheduled");
    auto debiased = [&](double beta) {
      double power = std::pow(beta, static_cast<double>(p.step));
      return (beta - power) / (1 - power);
    };
    return {.moments = AdamMoments(debiased(o.beta1), debiased(o.beta2)),
            .eps = static_cast<float>(o.eps),
            .lr = o.lr,
            .decay = o.decouple_lr ? o.weight_decay / o.max_lr : o.weight_decay};
  }
  FORGE_INLINE static StableAdamW::Step next_pass(const Step& s, const Sums& sums) {
    double lr = s.lr / std::max(1.0, std::sqrt(sums.mean(0)));
    return {.keep = static_cast<float>(1 - lr * s.decay), .minus_lr = static_cast<float>(-lr), .eps = s.eps};
  }

  template <class V>
  FORGE_INLINE static void update(V&, V g, V* moment, const Step& s, V* numbers) {
    s.moments.update(g, moment[0], moment[1]);
    numbers[0] = g / max(sqrt(moment[1]), V(s.eps));
  }
};

}  // namespace rules
}  // namespace forge
