#pragma once

#include <array>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Adagrad (Duchi, Hazan & Singer 2011), as torch.optim.Adagrad defines it:
//   g ← g + weight_decay · w
//   s ← s + g²                        initial_accumulator_value before the first update
//   w ← w − lr / (1 + (t − 1) lr_decay) · g / (√s + eps)
struct AdagradOptions {
  static constexpr const char* kName = "Adagrad";
  double lr = 1e-2;
  double lr_decay = 0;
  double weight_decay = 0;
  double initial_accumulator_value = 0;
  double eps = 1e-10;
  bool maximize = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"lr_decay", Bounds::not_negative}, o.lr_decay);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"initial_accumulator_value", Bounds::not_negative}, o.initial_accumulator_value);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"maximize"}, o.maximize);
  }
};

namespace rules {

struct Adagrad {
  using Options = AdagradOptions;
  static constexpr const char* kName = "adagrad";
  static constexpr std::array kMoments = {Moment{"sum", Sign::not_negative}};

  struct Step {
    float weight_decay, initial, eps;
    float step_size;  // lr / (1 + (t − 1) lr_decay)
    bool first, maximize;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.weight_decay = static_cast<float>(o.weight_decay),
            .initial = static_cast<float>(o.initial_accumulator_value),
            .eps = static_cast<float>(o.eps),
            .step_size = static_cast<float>(o.lr / (1 + static_cast<double>(p.step - 1) * o.lr_decay)),
            .first = p.step == 1,
            .maximize = o.maximize};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V& sum = moment[0];
    if (s.maximize) g = -g;
    g = fma(V(s.weight_decay), w, g);
    sum = fma(g, g, s.first ? V(s.initial) : sum);
    V change = V(s.step_size) * g / (sqrt(sum) + V(s.eps));
    w = w - change;
  }
};

}  // namespace rules
}  // namespace forge
