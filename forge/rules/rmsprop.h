#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// RMSprop (Hinton 2012; centered: Graves, arXiv 1308.0850), as torch.optim.RMSprop defines it:
//   g ← g + weight_decay · w
//   s ← α s + (1 − α) g²
//   centered:  a ← α a + (1 − α) g,  r = √(s − a²) + eps;   else r = √s + eps
//   momentum:  b ← momentum · b + g / r,  w ← w − lr · b;   else w ← w − lr · g / r
struct RMSpropOptions {
  static constexpr const char* kName = "RMSprop";
  double lr = 1e-2;
  double alpha = 0.99;
  double eps = 1e-8;
  double weight_decay = 0;
  double momentum = 0;
  bool centered = false;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"alpha", Bounds::not_negative}, o.alpha);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"momentum", Bounds::not_negative}, o.momentum);
    f(Field{"centered"}, o.centered);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

template <bool kCentered, bool kMomentum>
struct RMSpropOf {
  using Options = RMSpropOptions;
  static constexpr const char* kName = kCentered ? (kMomentum ? "rmsprop_centered_momentum" : "rmsprop_centered")
                                                 : (kMomentum ? "rmsprop_momentum" : "rmsprop");
  static constexpr auto kMoments = [] {
    constexpr Moment kSquare{"square_avg", Sign::not_negative}, kBuffer{"momentum_buffer"}, kMean{"grad_avg"};
    if constexpr (kCentered && kMomentum)
      return std::array{kSquare, kBuffer, kMean};
    else if constexpr (kMomentum)
      return std::array{kSquare, kBuffer};
    else if constexpr (kCentered)
      return std::array{kSquare, kMean};
    else
      return std::array{kSquare};
  }();

  struct Step {
    float weight_decay;
    Lerp to_g;
    float alpha, one_minus_alpha, eps, momentum, lr;
    bool maximize;
  };
  static bool fits(const Options& o) { return o.centered == kCentered && (o.momentum > 0) == kMomentum; }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.weight_decay = static_cast<float>(o.weight_decay),
            .to_g = Lerp(1 - o.alpha),
            .alpha = static_cast<float>(o.alpha),
            .one_minus_alpha = static_cast<float>(1 - o.alpha),
            .eps = static_cast<float>(o.eps),
            .momentum = static_cast<float>(o.momentum),
            .lr = static_cast<float>(o.lr),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    moment[0] = fma(V(s.one_minus_alpha) * g, g, V(s.alpha) * moment[0]);
    V variance = moment[0];
    if constexpr (kCentered) {
      V& mean = moment[kMoments.size() - 1];
      mean = lerp(mean, g, s.to_g);
      variance = fma(-mean, mean, variance);  // as in torch, a rounding may leave it below 0, and w NaN
    }
    V root = sqrt(variance) + V(s.eps);
    if constexpr (kMomentum) {
      moment[1] = fma(V(s.momentum), moment[1], g / root);
      w = fma(V(-s.lr), moment[1], w);
    } else {
      V change = V(s.lr) * g / root;
      w = w - change;
    }
  }
};

using RMSprop = RMSpropOf<false, false>;
using RMSpropMomentum = RMSpropOf<false, true>;
using RMSpropCentered = RMSpropOf<true, false>;
using RMSpropCenteredMomentum = RMSpropOf<true, true>;

}  // namespace rules
}  // namespace forge
