#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "forge/rules/list.h"
#include "forge/rules/testing/terms.h"

// torch.optim in float64, one update of one weight at a time, written from its source and not from the rules.
namespace forge::testing {

inline Step64 formula(const SgdOptions& o, const Given& s) {
  Terms g = gradient(o, s, o.weight_decay);
  if (o.momentum == 0) return {-o.lr * g, {g}};
  Terms buffer = s.step == 1 ? g : o.momentum * Terms(s.moment[0]) + (1 - o.dampening) * g;
  return {-o.lr * (o.nesterov ? g + o.momentum * buffer : buffer), {buffer}};
}

template <class Options>
Step64 adam(const Options& o, const Given& s, double l2, double decoupled) {
  Terms g = gradient(o, s, l2), m = average(o.beta1, s.moment[0], g);
  Terms v = average_of_squares(o.beta2, s.moment[1], g);
  Terms largest = v.value > s.moment[2] ? v : Terms(s.moment[2]);
  double used = o.amsgrad ? largest.value : v.value;
  double denominator = std::sqrt(used) / std::sqrt(one_minus_power(o.beta2, s.step)) + o.eps;
  Terms change = -o.lr / one_minus_power(o.beta1, s.step) * m / denominator;
  return {change - Terms(o.lr * decoupled * s.w), {m, v, largest}};
}
inline Step64 formula(const AdamOptions& o, const Given& s) {
  return o.decoupled_weight_decay ? adam(o, s, 0, o.weight_decay) : adam(o, s, o.weight_decay, 0);
}
inline Step64 formula(const AdamWOptions& o, const Given& s) { return adam(o, s, 0, o.weight_decay); }

inline Step64 formula(const NAdamOptions& o, const Given& s) {
  auto mu = [&](std::int64_t t) {
    return o.beta1 * (1.0 - 0.5 * std::pow(0.96, static_cast<double>(t) * o.momentum_decay));
  };
  float rounded = 1;  // a tensor of fp32
  for (std::int64_t t = 1; t <= s.step; ++t) rounded *= static_cast<float>(mu(t));
  double product = rounded;
  bool coupled = !o.decoupled_weight_decay;
  Terms g = gradient(o, s, coupled ? o.weight_decay : 0), m = average(o.beta1, s.moment[0], g);
  Terms v = average_of_squares(o.beta2, s.moment[1], g);
  double denominator = std::sqrt(v.value / one_minus_power(o.beta2, s.step)) + o.eps, following = mu(s.step + 1);
  Terms decay = coupled ? 0 : o.lr * o.weight_decay * s.w;
  Terms of_g = o.lr * (1 - mu(s.step)) / (1 - product) * g / denominator;
  Terms of_m = o.lr * following / (1 - product * following) * m / denominator;
  return {Terms(0) - decay - of_g - of_m, {m, v}};
}

inline Step64 formula(const RAdamOptions& o, const Given& s) {
  bool coupled = !o.decoupled_weight_decay;
  Terms g = gradient(o, s, coupled ? o.weight_decay : 0), m = average(o.beta1, s.moment[0], g);
  Terms v = average_of_squares(o.beta2, s.moment[1], g);
  double t = static_cast<double>(s.step), c1 = one_minus_power(o.beta1, s.step), c2 = one_minus_power(o.beta2, s.step);
  double longest = 2 / (1 - o.beta2) - 1, length = longest - 2 * t * std::pow(o.beta2, t) / c2;
  double adaptive = 1;
  if (length > 5) {
    double rectified = std::sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length));
    adaptive = rectified * std::sqrt(c2) / (std::sqrt(v.value) + o.eps);
  }
  Terms decay = coupled ? 0 : o.lr * o.weight_decay * s.w;
  return {Terms(0) - decay - o.lr * adaptive / c1 * m, {m, v}};
}

inline Step64 formula(const AdamaxOptions& o, const Given& s) {
  Terms g = gradient(o, s, o.weight_decay), m = average(o.beta1, s.moment[0], g);
  Terms seen(std::abs(g.value) + o.eps, std::max(g.largest, o.eps));
  Terms norm = o.beta2 * s.moment[1] > seen.value ? Terms(o.beta2 * s.moment[1]) : seen;
  return {-o.lr / one_minus_power(o.beta1, s.step) * m / norm.value, {m, norm}};
}

inline Step64 formula(const AdagradOptions& o, const Given& s) {
  Terms g = gradient(o, s, o.weight_decay);
  double before = s.step == 1 ? o.initial_accumulator_value : s.moment[0];
  Terms sum = Terms(before) + square(g);
  double lr = o.lr / (1 + static_cast<double>(s.step - 1) * o.lr_decay);
  return {-lr * g / (std::sqrt(sum.value) + o.eps), {sum}};
}

inline Step64 formula(const AdadeltaOptions& o, const Given& s) {
  Terms g = gradient(o, s, o.weight_decay), squares = average_of_squares(o.rho, s.moment[0], g);
  Terms delta = std::sqrt(s.moment[1] + o.eps) / std::sqrt(squares.value + o.eps) * g;
  return {-o.lr * delta, {squares, average_of_squares(o.rho, s.moment[1], delta)}};
}

inline Step64 formula(const RMSpropOptions& o, const Given& s) {
  Terms g = gradient(o, s, o.weight_decay), squares = average_of_squares(o.alpha, s.moment[0], g);
  Terms mean = average(o.alpha, s.moment[o.momentum > 0 ? 2 : 1], g);
  double variance = o.centered ? squares.value - mean.value * mean.value : squares.value;
  Terms direction = g / (std::sqrt(variance) + o.eps);
  if (o.momentum == 0) return {-o.lr * direction, {squares, mean}};
  Terms buffer = o.momentum * Terms(s.moment[1]) + direction;
  return {-o.lr * buffer, {squares, buffer, mean}};
}

inline Step64 formula(const RpropOptions& o, const Given& s) {
  double g = o.maximize ? -s.g : s.g, turn = s.step == 1 ? 0 : sign(g * s.moment[0]);
  double size = s.step == 1 ? o.lr : s.moment[1];
  size = std::clamp(size * (turn > 0 ? o.etaplus : turn < 0 ? o.etaminus : 1), o.step_size_min, o.step_size_max);
  if (turn < 0) g = 0;
  return {-sign(g) * size, {g, size}};
}

inline Step64 formula(const AsgdOptions& o, const Given& s) {
  double t = static_cast<double>(s.step - 1);  // both were set after the update before, as tensors of fp32
  double eta = static_cast<float>(s.step == 1 ? o.lr : o.lr / std::pow(1 + o.lambd * o.lr * t, o.alpha));
  double mu = static_cast<float>(s.step == 1 ? 1 : 1 / std::max(1.0, t - o.t0));
  Terms change = Terms(-o.lambd * eta * s.w) - eta * gradient(o, s, o.weight_decay);
  Terms w = Terms(s.w) + change;
  return {change, {mu == 1 ? w : Terms(s.moment[0]) + mu * (w - Terms(s.moment[0]))}};
}

}  // namespace forge::testing
