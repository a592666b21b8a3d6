#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// Momentum over a diagonal of the Hessian, clipped (Liu et al., arXiv 2305.14342), as the authors' class defines it
// (Liuhong99/Sophia):
//   m ← β₁ m + (1 − β₁) g
//   w ← (1 − lr · weight_decay) w − lr · sign(m) · min(1, |m| / (rho · bs · h + 1e-15))
// and, every so many updates, with the gradient ĝ of labels sampled from the model:
//   h ← β₂ h + (1 − β₂) ĝ²
// bs, an argument of their step(), is the number of tokens in a batch.
struct SophiaGOptions {
  static constexpr const char* kName = "SophiaG";
  double lr = 1e-4;
  double beta1 = 0.965;
  double beta2 = 0.99;
  double rho = 0.04;
  double weight_decay = 0.1;
  int bs = 5120;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"beta1", Bounds::below_one, "betas", 0}, o.beta1);
    f(Field{"beta2", Bounds::below_one, "betas", 1}, o.beta2);
    f(Field{"rho", Bounds::not_negative}, o.rho);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"bs", Bounds::positive}, o.bs);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct SophiaG {
  using Options = SophiaGOptions;
  static constexpr const char* kName = "sophia_g";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"hessian", Sign::not_negative}};

  struct Step {
    float decay, minus_lr;
    Lerp to_g;
    float scale_of_h;
    bool maximize;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.decay = static_cast<float>(1 - o.lr * o.weight_decay),
            .minus_lr = static_cast<float>(-o.lr),
            .to_g = Lerp(1 - o.beta1),
            .scale_of_h = static_cast<float>(o.rho * o.bs),
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &m = moment[0], &h = moment[1];
    if (s.maximize) g = -g;
    m = lerp(m, g, s.to_g);
    // The denominator is above 0, so this is sign(m) · min(1, |m| / denominator).
    V ratio = m / fma(V(s.scale_of_h), h, V(1e-15f));
    w = fma(V(s.decay), w, V(s.minus_lr) * min(V(1.f), max(V(-1.f), ratio)));
  }
};

// The authors' update_hessian(): only h changes. Asked for by name, never chosen by options.
struct SophiaHessian {
  using Options = SophiaGOptions;
  static constexpr const char* kName = "sophia_hessian";
  static constexpr std::array kMoments = SophiaG::kMoments;
  static constexpr bool kWritesWeight = false;

  struct Step {
    AdamMoments moments;
  };
  static bool fits(const Options&) { return false; }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.moments = AdamMoments(o.beta1, o.beta2)};
  }

  template <class V>
  FORGE_INLINE static void update(V&, V g, V* moment, const Step& s) {
    s.moments.update_second(g, moment[1]);
  }
};

}  // namespace rules
}  // namespace forge
