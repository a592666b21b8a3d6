#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Resilient propagation (Riedmiller & Braun 1993), as torch.optim.Rprop defines it: a step size δ for each weight,
// which grows while the gradient keeps its sign and shrinks when it turns.
//   δ ← clamp(δ · (etaplus where g p > 0, etaminus where g p < 0, else 1), step_size_min, step_size_max)
//   g ← 0 where g p < 0
//   w ← w − sign(g) · δ
//   p ← g
// Before the first update δ is lr, which is not looked at again, and p is 0.
struct RpropOptions {
  static constexpr const char* kName = "Rprop";
  double lr = 1e-2;
  double etaminus = 0.5;
  double etaplus = 1.2;
  double step_size_min = 1e-6;
  double step_size_max = 50;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"etaminus", Bounds::inside_one, "etas", 0}, o.etaminus);
    f(Field{"etaplus", Bounds::above_one, "etas", 1}, o.etaplus);
    f(Field{"step_size_min", Bounds::not_negative, "step_sizes", 0}, o.step_size_min);
    f(Field{"step_size_max", Bounds::not_negative, "step_sizes", 1}, o.step_size_max);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct Rprop {
  using Options = RpropOptions;
  static constexpr const char* kName = "rprop";
  static constexpr std::array kMoments = {Moment{"prev"}, Moment{"step_size", Sign::not_negative}};

  struct Step {
    float etaminus, etaplus, smallest, largest, initial;
    bool first, maximize;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.etaminus = static_cast<float>(o.etaminus),
            .etaplus = static_cast<float>(o.etaplus),
            .smallest = static_cast<float>(o.step_size_min),
            .largest = static_cast<float>(o.step_size_max),
            .initial = static_cast<float>(o.lr),
            .first = p.step == 1,
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &previous = moment[0], &size = moment[1];
    if (s.maximize) g = -g;
    V zero(0.f), turn = s.first ? zero : g * previous;
    V factor = select(turn > zero, V(s.etaplus), select(turn < zero, V(s.etaminus), V(1.f)));
    size = min(V(s.largest), max(V(s.smallest), (s.first ? V(s.initial) : size) * factor));
    previous = select(turn < zero, zero, g);
    w = fma(-sign_of(previous), size, w);
  }
};

}  // namespace rules
}  // namespace forge
