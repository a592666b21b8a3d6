#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "forge/base/inline.h"
#include "forge/rules/adam.h"
#include "forge/rules/rule.h"

// Schedule-Free (Defazio et al., arXiv 2405.15682), as facebookresearch/schedule_free defines it. With γ the learning
// rate of this update, after its warm-up, and c its weight in the average:
//   z ← z − γ u                       the weights that are stepped
//   x ← (1 − c) x + c z               their average, what is evaluated
//   y = β x + (1 − β) z               where the gradient is taken: what we keep as w
//   u = g + weight_decay · y for SGD; AdamW divides g by √(v / (1 − β₂ᵗ)) + eps first
//   γ = lr · min(1, t / warmup_steps),  c = pₜ / Σ pᵢ with pᵢ = i^r · (the largest γ so far)^weight_lr_power
//
// Instead of z, whose difference from y few bits cannot hold, we keep d = z − y: it begins at zero and is as small as a
// few steps. With the authors' form without x, y' = (1 − c) y + c z − γ (1 − β (1 − c)) u:
//   y' = y + c d − γ (1 − β (1 − c)) u
//   d' = z − γ u − y' = y + d − γ u − y' = (1 − c)(d − β γ u)
namespace forge {

// Between training and evaluation: x = y − d (1 − β) / β, as β y = β x + (1 − β)(y + d). Back is not exact in fp32:
// keep a copy of y where that matters.
inline double schedule_free_ratio(double beta) { return (1 - beta) / beta; }
template <class V>
FORGE_INLINE V schedule_free_x(V y, V d, V ratio) {
  return fma(-ratio, d, y);
}
template <class V>
FORGE_INLINE V schedule_free_y(V x, V d, V ratio) {
  return fma(ratio, d, x);
}

struct ScheduleFreeAdamWOptions {
  static constexpr const char* kName = "ScheduleFreeAdamW";
  double lr = 2.5e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  int warmup_steps = 0;
  double r = 0;
  double weight_lr_power = 2;
  double inner_momentum = 0;  // above 0: u from m / (1 − inner_momentumᵗ) instead of g, m the average of g

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"beta1", Bounds::inside_one, "betas", 0}, o.beta1);
    f(Field{"beta2", Bounds::below_one, "betas", 1}, o.beta2);
    f(Field{"eps", Bounds::not_negative}, o.eps);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"warmup_steps", Bounds::not_negative}, o.warmup_steps);
    f(Field{"r"}, o.r);
    f(Field{"weight_lr_power", Bounds::not_negative}, o.weight_lr_power);
    f(Field{"inner_momentum", Bounds::below_one}, o.inner_momentum);
  }
};

struct ScheduleFreeSGDOptions {
  static constexpr const char* kName = "ScheduleFreeSGD";
  double lr = 1;
  double momentum = 0.9;
  double weight_decay = 0;
  int warmup_steps = 0;
  double r = 0;
  double weight_lr_power = 2;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"momentum", Bounds::inside_one}, o.momentum);
    f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
    f(Field{"warmup_steps", Bounds::not_negative}, o.warmup_steps);
    f(Field{"r"}, o.r);
    f(Field{"weight_lr_power", Bounds::not_negative}, o.weight_lr_power);
  }
};

namespace rules {

// What both rules remember between updates, and the step of y and d.
struct ScheduleFree {
  static constexpr std::array kScalars = {"weight_sum", "lr_max"};  // as of the updates before this one

  struct Schedule {
    double lr, lr_max, weight_sum, c;
  };
  template <class Options>
  static Schedule schedule(const Options& o, const Progress& p) {
    double t = static_cast<double>(p.step);
    Schedule s = {
        .lr = p.step <= o.warmup_steps ? o.lr * t / o.warmup_steps : o.lr, .lr_max = 0, .weight_sum = 0, .c = 0};
    s.lr_max = p.step == 1 ? s.lr : std::max(s.lr, p.scalars[1]);
    double weight = std::pow(t, o.r) * std::pow(s.lr_max, o.weight_lr_power);
    s.weight_sum = p.step == 1 ? weight : p.scalars[0] + weight;
    s.c = s.weight_sum == 0 ? 0 : weight / s.weight_sum;  // all learning rates 0 so far: nothing to average
    return s;
  }
  template <class Options>
  static Progress next(const Options& o, Progress p) {
    Schedule s = schedule(o, p);
    p.scalars = {s.weight_sum, s.lr_max};
    return p;
  }

  float c, one_minus_c, minus_rate_of_y, minus_rate_of_d;

  ScheduleFree() = default;
  ScheduleFree(const Schedule& s, double beta)
      : c(static_cast<float>(s.c)),
        one_minus_c(static_cast<float>(1 - s.c)),
        minus_rate_of_y(static_cast<float>(-s.lr * (1 - beta * (1 - s.c)))),
        minus_rate_of_d(static_cast<float>(-s.lr * beta)) {}

  template <class V>
  FORGE_INLINE void update(V& y, V& d, V u) const {
    y = y + fma(V(minus_rate_of_y), u, V(c) * d);
    d = V(one_minus_c) * fma(V(minus_rate_of_d), u, d);
  }
};

template <bool kInner>
struct ScheduleFreeAdamWOf {
  using Options = ScheduleFreeAdamWOptions;
  static constexpr const char* kName = kInner ? "schedule_free_adamw_inner" : "schedule_free_adamw";
  static constexpr auto kMoments = [] {
    constexpr Moment kDifference{"z_minus_y"}, kSecond{"exp_avg_sq", Sign::not_negative};
    if constexpr (kInner)
      return std::array{kDifference, kSecond, Moment{"exp_avg"}};
    else
      return std::array{kDifference, kSecond};
  }();
  static constexpr auto kScalars = ScheduleFree::kScalars;

  struct Step {
    ScheduleFree average;
    AdamMoments moments;  // the first is the inner one
    float inverse_sqrt_c2, eps;
    float inverse_c1;
    float weight_decay;
  };
  static bool fits(const Options& o) { return (o.inner_momentum > 0) == kInner; }
  static Progress next(const Options& o, const Progress& p) { return ScheduleFree::next(o, p); }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.average = ScheduleFree(ScheduleFree::schedule(o, p), o.beta1),
            .moments = AdamMoments(o.inner_momentum, o.beta2),
            .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(bias_correction(o.beta2, p.step))),
            .eps = static_cast<float>(o.eps),
            .inverse_c1 = static_cast<float>(1 / bias_correction(o.inner_momentum, p.step)),
            .weight_decay = static_cast<float>(o.weight_decay)};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    s.moments.update_second(g, moment[1]);
    V direction = g;
    if constexpr (kInner) {
      moment[2] = lerp(moment[2], g, s.moments.to_g);
      direction = V(s.inverse_c1) * moment[2];
    }
    V u = direction / fma(sqrt(moment[1]), V(s.inverse_sqrt_c2), V(s.eps));
    s.average.update(w, moment[0], fma(V(s.weight_decay), w, u));
  }
};

using ScheduleFreeAdamW = ScheduleFreeAdamWOf<false>;
using ScheduleFreeAdamWInner = ScheduleFreeAdamWOf<true>;

struct ScheduleFreeSGD {
  using Options = ScheduleFreeSGDOptions;
  static constexpr const char* kName = "schedule_free_sgd";
  static constexpr std::array kMoments = {Moment{"z_minus_y"}};
  static constexpr auto kScalars = ScheduleFree::kScalars;

  struct Step {
    ScheduleFree average;
    float weight_decay;
  };
  static Progress next(const Options& o, const Progress& p) { return ScheduleFree::next(o, p); }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.average = ScheduleFree(ScheduleFree::schedule(o, p), o.momentum),
            .weight_decay = static_cast<float>(o.weight_decay)};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    s.average.update(w, moment[0], fma(V(s.weight_decay), w, g));
  }
};

}  // namespace rules
}  // namespace forge
