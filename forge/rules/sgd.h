#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Stochastic gradient descent, as torch.optim.SGD defines it:
//   g ← −g                       if maximize
//   g ← g + weight_decay · w
//   b ← g at the first step, else momentum · b + (1 − dampening) · g
//   d ← g + momentum · b         if nesterov, else b
//   w ← w − lr · d
struct SgdOptions {
  static constexpr const char* kName = "SGD";
  static constexpr bool kCountsSteps = false;
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"momentum", Bounds::not_negative}, o.momentum);
    f(Field{"dampening"}, o.dampening);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"nesterov"}, o.nesterov);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

inline void check_sgd(const SgdOptions& o, const Progress& p) {
  check_options(o, p);
  check(!o.nesterov || (o.momentum > 0 && o.dampening == 0),
        "SGD: nesterov needs momentum above 0 and dampening 0, got momentum ", o.momentum, " and dampening ",
        o.dampening);
}

// Without momentum: no state, d = g.
struct Sgd {
  using Options = SgdOptions;
  static constexpr const char* kName = "sgd";
  static constexpr std::array<Moment, 0> kMoments = {};

  struct Step {
    float minus_lr, weight_decay;
    bool maximize;
  };
  static bool fits(const SgdOptions& o) { return o.momentum == 0; }
  static Step prepare(const SgdOptions& o, const Progress& p = {}) {
    check_sgd(o, p);
    check(fits(o), "SGD: momentum is ", o.momentum, "; this rule has no state for it, use sgd_momentum");
    return {.minus_lr = static_cast<float>(-o.lr),
            .weight_decay = static_cast<float>(o.weight_decay),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V*, const Step& s) {
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    w = fma(V(s.minus_lr), g, w);
  }
};

// With momentum: one moment, b.
struct SgdMomentum {
  using Options = SgdOptions;
  static constexpr const char* kName = "sgd_momentum";
  static constexpr std::array kMoments = {Moment{"momentum_buffer"}};

  struct Step {
    float minus_lr, weight_decay, momentum;
    float keep, add;  // b ← keep · b + add · g: (0, 1) at the first step, which is not damped
    bool nesterov, maximize;
  };
  static Step prepare(const SgdOptions& o, const Progress& p) {
    check_sgd(o, p);
    bool first = p.step == 1;
    return {.minus_lr = static_cast<float>(-o.lr),
            .weight_decay = static_cast<float>(o.weight_decay),
            .momentum = static_cast<float>(o.momentum),
            .keep = first ? 0.f : static_cast<float>(o.momentum),
            .add = first ? 1.f : static_cast<float>(1 - o.dampening),
            .nesterov = o.nesterov,
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V& b = moment[0];
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    b = fma(V(s.add), g, V(s.keep) * b);
    V d = s.nesterov ? fma(V(s.momentum), b, g) : b;
    w = fma(V(s.minus_lr), d, w);
  }
};

}  // namespace rules
}  // namespace forge
