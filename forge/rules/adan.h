#pragma once

#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// Adaptive Nesterov momentum (Xie et al., arXiv 2208.06677), as the authors' class defines it (sail-sg/Adan; the βs are
// what is kept, the paper writes what is added):
//   d = g − previous g                0 at the first update
//   m ← β₁ m + (1 − β₁) g,  q ← β₂ q + (1 − β₂) d,  n ← β₃ n + (1 − β₃)(g + β₂ d)²,   cᵢ = 1 − βᵢᵗ
//   x = (lr / c₁ · m + lr β₂ / c₂ · q) / (√n / √c₃ + eps)
//   w ← (w − x) / (1 + lr · weight_decay), or with no_prox (1 − lr · weight_decay) w − x
// Their max_grad_norm, of all weights together, is the caller's.
struct AdanOptions {
  static constexpr const char* kName = "Adan";
  double lr = 1e-3;
  double beta1 = 0.98;
  double beta2 = 0.92;
  double beta3 = 0.99;
  double eps = 1e-8;
  double weight_decay = 0;
  bool no_prox = false;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"beta1", Bounds::below_one, "betas", 0}, o.beta1);
    f(Field{"beta2", Bounds::below_one, "betas", 1}, o.beta2);
    f(Field{"beta3", Bounds::below_one, "betas", 2}, o.beta3);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"no_prox"}, o.no_prox);
  }
};

namespace rules {

struct Adan {
  using Options = AdanOptions;
  static constexpr const char* kName = "adan";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative},
                                          Moment{"exp_avg_diff"}, Moment{"neg_pre_grad"}};

  struct Step {
    float decay;
    Lerp to_g, to_difference;
    float beta2, beta3, one_minus_beta3;
    float inverse_sqrt_c3, eps;
    float of_m, of_q;
    bool first;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    double shrunk = o.no_prox ? 1 : 1 / (1 + o.lr * o.weight_decay);  // what prox divides x by too
    return {.decay = static_cast<float>(o.no_prox ? 1 - o.lr * o.weight_decay : shrunk),
            .to_g = Lerp(1 - o.beta1),
            .to_difference = Lerp(1 - o.beta2),
            .beta2 = static_cast<float>(o.beta2),
            .beta3 = static_cast<float>(o.beta3),
            .one_minus_beta3 = static_cast<float>(1 - o.beta3),
            .inverse_sqrt_c3 = static_cast<float>(1 / std::sqrt(bias_correction(o.beta3, p.step))),
            .eps = static_cast<float>(o.eps),
            .of_m = static_cast<float>(shrunk * o.lr / bias_correction(o.beta1, p.step)),
            .of_q = static_cast<float>(shrunk * o.lr * o.beta2 / bias_correction(o.beta2, p.step)),
            .first = p.step == 1};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &m = moment[0], &n = moment[1], &q = moment[2], &minus_previous = moment[3], zero(0.f);
    V difference = s.first ? zero : g + minus_previous;
    m = lerp(m, g, s.to_g);
    q = lerp(q, difference, s.to_difference);
    V ahead = fma(V(s.beta2), difference, g);
    n = fma(V(s.one_minus_beta3) * ahead, ahead, V(s.beta3) * n);
    V change = fma(V(s.of_m), m, V(s.of_q) * q) / fma(sqrt(n), V(s.inverse_sqrt_c3), V(s.eps));
    w = fma(V(s.decay), w, -change);
    minus_previous = zero - g;
  }
};

}  // namespace rules
}  // namespace forge
