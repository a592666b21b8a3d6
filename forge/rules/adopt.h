#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

namespace forge {

// Adam that converges with any β₂ (Taniguchi et al., arXiv 2411.02853), as the authors' class defines it
// (iShohei220/adopt): the gradient is divided by the second moment of those before it.
//   g ← g + weight_decay · w, or w ← (1 − lr · weight_decay) w if decouple
//   n = clamp(g / max(√v, eps), −c, c)
//   m ← β₁ m + (1 − β₁) n
//   w ← w − lr · m
//   v ← β₂ v + (1 − β₂) g²
// The first update only sets v ← g². c is (t − 1)^¼ at update t, or else clip_value, the number that their clip_lambda
// gives for this update; infinity clips nothing.
struct AdoptOptions {
  static constexpr const char* kName = "ADOPT";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.9999;
  double eps = 1e-6;
  double clip_value = 0;  // 0: (t − 1)^¼
  double weight_decay = 0;
  bool decouple = false;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"beta1", Bounds::below_one, "betas", 0}, o.beta1);
    f(Field{"beta2", Bounds::below_one, "betas", 1}, o.beta2);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"clip_value", Bounds::not_negative}, o.clip_value);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"decouple"}, o.decouple);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct Adopt {
  using Options = AdoptOptions;
  static constexpr const char* kName = "adopt";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative}};

  struct Step {
    Decay decay;
    AdamMoments moments;
    float eps, clip, minus_lr;
    bool first, maximize;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    double clip = o.clip_value == 0 ? std::pow(static_cast<double>(p.step - 1), 0.25) : o.clip_value;
    return {.decay = Decay(o.lr, o.weight_decay, o.decouple),
            .moments = AdamMoments(o.beta1, o.beta2),
            .eps = static_cast<float>(o.eps),
            .clip = static_cast<float>(clip),
            .minus_lr = static_cast<float>(-o.lr),
            .first = p.step == 1,
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &m = moment[0], &v = moment[1];
    if (s.maximize) g = -g;
    g = fma(V(s.decay.l2), w, g);
    if (s.first) {
      v = g * g;
      return;
    }
    V normed = g / max(V(s.eps), sqrt(v));
    m = lerp(m, min(V(s.clip), max(V(-s.clip), normed)), s.moments.to_g);
    w = fma(V(s.decay.keep), w, V(s.minus_lr) * m);
    s.moments.update_second(g, v);
  }
};

}  // namespace rules
}  // namespace forge
