#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Adadelta (Zeiler, arXiv 1212.5701), as torch.optim.Adadelta defines it:
//   g ← g + weight_decay · w
//   s ← ρ s + (1 − ρ) g²
//   δ = √(a + eps) / √(s + eps) · g
//   a ← ρ a + (1 − ρ) δ²
//   w ← w − lr · δ
struct AdadeltaOptions {
  static constexpr const char* kName = "Adadelta";
  double lr = 1;
  double rho = 0.9;
  double eps = 1e-6;
  double weight_decay = 0;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"rho", Bounds::up_to_one}, o.rho);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct Adadelta {
  using Options = AdadeltaOptions;
  static constexpr const char* kName = "adadelta";
  static constexpr std::array kMoments = {Moment{"square_avg", Sign::not_negative},
                                          Moment{"acc_delta", Sign::not_negative}};

  struct Step {
    float weight_decay, rho, one_minus_rho, eps, minus_lr;
    bool maximize;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.weight_decay = static_cast<float>(o.weight_decay),
            .rho = static_cast<float>(o.rho),
            .one_minus_rho = static_cast<float>(1 - o.rho),
            .eps = static_cast<float>(o.eps),
            .minus_lr = static_cast<float>(-o.lr),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &square = moment[0], &acc = moment[1];
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    square = fma(V(s.one_minus_rho) * g, g, V(s.rho) * square);
    // Two roots, as one of the quotient would be denormal for large gradients.
    V delta = sqrt(acc + V(s.eps)) / sqrt(square + V(s.eps)) * g;
    acc = fma(V(s.one_minus_rho) * delta, delta, V(s.rho) * acc);
    w = fma(V(s.minus_lr), delta, w);
  }
};

}  // namespace rules
}  // namespace forge
