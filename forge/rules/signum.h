#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// The sign of the momentum (Bernstein et al., arXiv 1802.04434), as MXNet's Signum defines it, where weight_decay is
// called wd_lh:
//   b ← momentum · b + (1 − momentum) g
//   w ← (1 − lr · weight_decay) w − lr · sign(b)
struct SignumOptions {
  static constexpr const char* kName = "Signum";
  double lr = 1e-2;
  double momentum = 0.9;
  double weight_decay = 0;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"momentum", Bounds::below_one}, o.momentum);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
  }
};

namespace rules {

struct Signum {
  using Options = SignumOptions;
  static constexpr const char* kName = "signum";
  static constexpr std::array kMoments = {Moment{"momentum_buffer"}};

  struct Step {
    float decay, minus_lr;
    Lerp to_g;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.decay = static_cast<float>(1 - o.lr * o.weight_decay),
            .minus_lr = static_cast<float>(-o.lr),
            .to_g = Lerp(1 - o.momentum)};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    moment[0] = lerp(moment[0], g, s.to_g);
    w = fma(V(s.decay), w, V(s.minus_lr) * sign_of(moment[0]));
  }
};

}  // namespace rules
}  // namespace forge
