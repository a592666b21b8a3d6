#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Averaged SGD (Polyak & Juditsky 1992), as torch.optim.ASGD defines it:
//   g ← g + weight_decay · w
//   w ← (1 − lambd · η) w − η g
//   a ← a + μ (w − a)                 the average of the weights
// and after update t, for the next:  η = lr / (1 + lambd · lr · t)^alpha,  μ = 1 / max(1, t − t0); lr and 1 before the
// first. So a new lr counts one update late.
struct AsgdOptions {
  static constexpr const char* kName = "ASGD";
  double lr = 1e-2;
  double lambd = 1e-4;
  double alpha = 0.75;
  double t0 = 1e6;
  double weight_decay = 0;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"lambd"}, o.lambd);
    f(Field{"alpha"}, o.alpha);
    f(Field{"t0"}, o.t0);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct Asgd {
  using Options = AsgdOptions;
  static constexpr const char* kName = "asgd";
  static constexpr std::array kMoments = {Moment{"ax"}};
  static constexpr std::array kScalars = {"eta", "mu"};

  struct Step {
    float weight_decay, decay, minus_eta;
    Lerp to_w;
    bool maximize;
  };
  // torch keeps both in fp32.
  static Progress next(const Options& o, Progress p) {
    double t = static_cast<double>(p.step);
    p.scalars = {static_cast<float>(o.lr / std::pow(1 + o.lambd * o.lr * t, o.alpha)),
                 static_cast<float>(1 / std::max(1.0, t - o.t0))};
    return p;
  }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    bool first = p.step == 1;
    double eta = first ? static_cast<float>(o.lr) : p.scalars[0], mu = first ? 1 : p.scalars[1];
    return {.weight_decay = static_cast<float>(o.weight_decay),
            .decay = static_cast<float>(1 - o.lambd * eta),
            .minus_eta = static_cast<float>(-eta),
            .to_w = Lerp(mu),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    w = fma(V(s.decay), w, V(s.minus_eta) * g);
    moment[0] = lerp(moment[0], w, s.to_w);  // w itself while μ is 1
  }
};

}  // namespace rules
}  // namespace forge
