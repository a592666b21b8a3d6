#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Momentum made orthogonal (Jordan et al., kellerjordan.github.io/posts/muon), as torch.optim.Muon defines it, for
// matrices:
//   b ← momentum · b + (1 − momentum) g
//   d = nesterov ? (1 − momentum) g + momentum · b : b,   O = the orthogonal factor of d by ns_steps steps of
//                                                         Newton and Schulz (torch/orthogonal.h)
//   w ← (1 − lr · weight_decay) w − lr · √max(1, out / in) · O
// match_rms_adamw (torch's adjust_lr_fn="match_rms_adamw"): 0.2 √max(out, in) instead of the root.
// Two passes: b and d, a matrix of the weight's shape, which only this weight's update holds; the weight, with O.
struct MuonOptions {
  static constexpr const char* kName = "Muon";
  static constexpr bool kCountsSteps = false;
  double lr = 1e-3;
  double weight_decay = 0.1;
  double momentum = 0.95;
  bool nesterov = true;
  double a = 3.4445;
  double b = -4.775;
  double c = 2.0315;
  double eps = 1e-7;
  int ns_steps = 5;
  bool match_rms_adamw = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"momentum", Bounds::not_negative}, o.momentum);
    f(Field{"nesterov"}, o.nesterov);
    f(Field{"a", Bounds::none, "ns_coefficients", 0}, o.a);
    f(Field{"b", Bounds::none, "ns_coefficients", 1}, o.b);
    f(Field{"c", Bounds::none, "ns_coefficients", 2}, o.c);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"ns_steps", Bounds::not_negative}, o.ns_steps);
    f(Field{"match_rms_adamw"}, o.match_rms_adamw);
  }
};

namespace rules {

// w ← keep · w − step · O.
struct Muon {
  using Options = MuonOptions;
  static constexpr const char* kName = "muon";
  static constexpr std::array<Moment, 0> kMoments{};

  struct Step {
    float keep, minus_step;
  };

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V*, const Step& s) {
    w = fma(V(s.minus_step), g, V(s.keep) * w);
  }
};

struct MuonMomentum {
  using Options = MuonOptions;
  using Next = Muon;
  static constexpr Takes kTakes = Takes::matrices;
  static constexpr const char* kName = "muon_momentum";
  static constexpr std::array kMoments = {Moment{"momentum_buffer"}};

  struct Step {
    Lerp to_g, to_buffer;
    bool nesterov, match_rms_adamw;
    float keep;
    double lr;
    NewtonSchulz iteration;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    check(o.ns_steps < 100, "Muon: ns_steps is ", o.ns_steps, "; give a value below 100");
    return {.to_g = Lerp(1 - o.momentum),
            .to_buffer = Lerp(o.momentum),
            .nesterov = o.nesterov,
            .match_rms_adamw = o.match_rms_adamw,
            .keep = static_cast<float>(1 - o.lr * o.weight_decay),
            .lr = o.lr,
            .iteration = {static_cast<float>(o.a), static_cast<float>(o.b), static_cast<float>(o.c),
                          static_cast<float>(o.eps), o.ns_steps}};
  }
  static NewtonSchulz orthogonalized(const Step& s) { return s.iteration; }
  FORGE_INLINE static Muon::Step next_pass(const Step& s, const Sums& sums) {
    auto out = static_cast<double>(sums.out), in = static_cast<double>(sums.in);
    double factor = s.match_rms_adamw ? 0.2 * std::sqrt(std::max(out, in)) : std::sqrt(std::max(1.0, out / in));
    return {.keep = s.keep, .minus_step = static_cast<float>(-factor * s.lr)};
  }

  template <class V>
  FORGE_INLINE static void update(V& direction, V g, V* moment, const Step& s) {
    V& b = moment[0];
    b = lerp(b, g, s.to_g);
    direction = s.nesterov ? lerp(g, b, s.to_buffer) : b;
  }
};

}  // namespace rules
}  // namespace forge
