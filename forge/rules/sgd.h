#pragma once

#include <cstdint>

#include "forge/base/inline.h"

namespace forge {

// Stochastic gradient descent, as torch.optim.SGD defines it:
//   g ← −g                       if maximize
//   g ← g + weight_decay · w
//   b ← g at the first step, else momentum · b + (1 − dampening) · g
//   d ← g + momentum · b         if nesterov, else b
//   w ← w − lr · d
struct SgdOptions {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  bool maximize = false;
};

namespace rules {

// Without momentum: no state, d = g.
struct Sgd {
  static constexpr const char* kName = "sgd";
  static constexpr int kMoments = 0;

  struct Step {
    float minus_lr, weight_decay;
    bool maximize;
  };
  static Step prepare(const SgdOptions& options);

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V*, const Step& s) {
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    w = fma(V(s.minus_lr), g, w);
  }
};

// With momentum: one moment, b.
struct SgdMomentum {
  static constexpr const char* kName = "sgd_momentum";
  static constexpr int kMoments = 1;

  struct Step {
    float minus_lr, weight_decay, momentum;
    float keep, add;  // b ← keep · b + add · g: (0, 1) at the first step, which is not damped
    bool nesterov, maximize;
  };
  // step: 1 at this weight's first update.
  static Step prepare(const SgdOptions& options, std::int64_t step);

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
