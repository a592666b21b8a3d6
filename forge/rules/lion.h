#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Evolved sign momentum (Chen et al., arXiv 2302.06675), as google/automl's lion_pytorch.py defines it:
//   w ← (1 − lr · weight_decay) w − lr · sign(β₁ m + (1 − β₁) g)
//   m ← β₂ m + (1 − β₂) g
struct LionOptions {
  static constexpr const char* kName = "Lion";
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"beta1", Bounds::below_one, "betas", 0}, o.beta1);
    f(Field{"beta2", Bounds::below_one, "betas", 1}, o.beta2);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
  }
};

namespace rules {

struct Lion {
  using Options = LionOptions;
  static constexpr const char* kName = "lion";
  static constexpr std::array kMoments = {Moment{"exp_avg"}};

  struct Step {
    float decay, minus_lr;
    Lerp direction, to_g;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.decay = static_cast<float>(1 - o.lr * o.weight_decay),
            .minus_lr = static_cast<float>(-o.lr),
            .direction = Lerp(1 - o.beta1),
            .to_g = Lerp(1 - o.beta2)};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V& m = moment[0];
    V change = V(s.minus_lr) * sign_of(lerp(m, g, s.direction));
    w = fma(V(s.decay), w, change);
    m = lerp(m, g, s.to_g);
  }
};

}  // namespace rules
}  // namespace forge
