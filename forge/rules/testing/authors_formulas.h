#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "forge/rules/list.h"
#include "forge/rules/testing/terms.h"

// The rules that torch.optim does not have, in float64, written from their authors' classes and not from the rules.
namespace forge::testing {

inline Step64 formula(const LionOptions& o, const Given& s) {
  Terms change = Terms(-o.lr * o.weight_decay * s.w) - o.lr * Terms(sign(average(o.beta1, s.moment[0], s.g).value));
  return {change, {average(o.beta2, s.moment[0], s.g)}};
}

inline Step64 formula(const SignumOptions& o, const Given& s) {
  Terms buffer = average(o.momentum, s.moment[0], s.g);
  return {Terms(-o.lr * o.weight_decay * s.w) - o.lr * Terms(sign(buffer.value)), {buffer}};
}

inline Step64 formula(const AdanOptions& o, const Given& s) {
  Terms difference = s.step == 1 ? Terms(0) : Terms(s.g) + Terms(s.moment[3]);
  Terms m = average(o.beta1, s.moment[0], s.g), q = average(o.beta2, s.moment[2], difference);
  Terms n = average_of_squares(o.beta3, s.moment[1], Terms(s.g) + o.beta2 * difference);
  double denominator = std::sqrt(n.value) / std::sqrt(one_minus_power(o.beta3, s.step)) + o.eps;
  Terms x = o.lr / one_minus_power(o.beta1, s.step) * m / denominator +
            o.lr * o.beta2 / one_minus_power(o.beta2, s.step) * q / denominator;
  double decay = o.lr * o.weight_decay;
  Terms change = o.no_prox ? Terms(-decay * s.w) - x : (Terms(-decay * s.w) - x) / (1 + decay);
  return {change, {m, n, q, -s.g}};
}

inline Step64 formula(const AdEMAMixOptions& o, const Given& s) {
  double t = static_cast<double>(s.step), alpha = o.alpha, beta3 = o.beta3;
  if (t < o.alpha_warmup) alpha *= t / o.alpha_warmup;
  if (t < o.beta3_warmup) {
    auto half_life = [](double beta) { return std::log(0.5) / std::log(beta + 1e-8) - 1; };
    double a = t / o.beta3_warmup, life = (1 - a) * half_life(o.beta1) + a * half_life(o.beta3);
    beta3 = std::pow(0.5, 1 / (life + 1));
  }
  Terms fast = average(o.beta1, s.moment[0], s.g), slow = average(beta3, s.moment[1], s.g);
  Terms v = average_of_squares(o.beta2, s.moment[2], s.g);
  double denominator = std::sqrt(v.value) / std::sqrt(one_minus_power(o.beta2, s.step)) + o.eps;
  Terms update = (fast / one_minus_power(o.beta1, s.step) + alpha * slow) / denominator;
  return {-o.lr * (update + Terms(o.weight_decay * s.w)), {fast, slow, v}};
}

inline Step64 formula(const AdoptOptions& o, const Given& s) {
  Terms g = gradient(o, s, o.decouple ? 0 : o.weight_decay);
  if (s.step == 1) return {0, {s.moment[0], square(g)}};
  double clip = o.clip_value > 0 ? o.clip_value : std::pow(static_cast<double>(s.step - 1), 0.25);
  Terms normed = g / std::max(std::sqrt(s.moment[1]), o.eps);
  if (std::abs(normed.value) > clip) normed = std::copysign(clip, normed.value);
  Terms m = average(o.beta1, s.moment[0], normed);
  Terms decay = o.decouple ? o.lr * o.weight_decay * s.w : 0;
  return {-o.lr * m - decay, {m, average_of_squares(o.beta2, s.moment[1], g)}};
}

// In the authors' first form, with z and x.
template <class Options>
Step64 schedule_free(const Options& o, double beta, Terms u, const Given& s, Terms second, Terms inner) {
  double lr = 0, lr_max = 0, weight = 0, sum = 0;
  for (std::int64_t k = 0; k < s.step; ++k) {
    double t = static_cast<double>(k + 1);
    lr = k < o.warmup_steps ? o.lr * t / o.warmup_steps : o.lr;
    lr_max = std::max(lr, lr_max);
    weight = std::pow(t, o.r) * std::pow(lr_max, o.weight_lr_power);
    sum += weight;
  }
  // As differences from the old y, so that nothing cancels.
  double c = weight / sum, z = s.moment[0], x = -(1 - beta) / beta * z;
  double largest_of_d = (1 - c) * std::max(std::abs(z), lr * beta * u.largest);
  double largest_of_y = std::max(c * std::abs(z), lr * (1 - beta * (1 - c)) * u.largest);
  z -= lr * u.value;
  x = (1 - c) * x + c * z;
  double y = beta * x + (1 - beta) * z;
  return {{y, largest_of_y}, {{beta * (z - x), largest_of_d}, second, inner}};
}
inline Step64 formula(const ScheduleFreeAdamWOptions& o, const Given& s) {
  Terms v = average_of_squares(o.beta2, s.moment[1], s.g), m = average(o.inner_momentum, s.moment[2], s.g);
  double denominator = std::sqrt(v.value / one_minus_power(o.beta2, s.step)) + o.eps;
  Terms direction = o.inner_momentum > 0 ? m / one_minus_power(o.inner_momentum, s.step) : Terms(s.g);
  return schedule_free(o, o.beta1, direction / denominator + Terms(o.weight_decay * s.w), s, v, m);
}
inline Step64 formula(const ScheduleFreeSGDOptions& o, const Given& s) {
  return schedule_free(o, o.momentum, Terms(s.g) + Terms(o.weight_decay * s.w), s, 0, 0);
}

inline Step64 formula(const SophiaGOptions& o, const Given& s) {
  double h = s.moment[1];
  Terms m = average(o.beta1, s.moment[0], o.maximize ? -s.g : s.g);
  Terms ratio = m / (o.rho * o.bs * h + 1e-15);
  if (std::abs(ratio.value) > 1) ratio = sign(ratio.value);
  return {Terms(-o.lr * o.weight_decay * s.w) - o.lr * ratio, {m, h}};
}
inline Step64 hessian_formula(const SophiaGOptions& o, const Given& s) {
  return {0, {s.moment[0], average_of_squares(o.beta2, s.moment[1], s.g)}};
}

inline Step64 formula(const MarsOptions& o, const Given& s) {
  Terms c = Terms(s.g) + o.gamma * (o.beta1 / (1 - o.beta1)) * (Terms(s.g) - Terms(s.moment[2]));
  Terms m = average(o.beta1, s.moment[0], c), v = average_of_squares(o.beta2, s.moment[1], c);
  Terms largest = v.value > s.moment[3] ? v : Terms(s.moment[3]);
  double root = std::sqrt((o.amsgrad ? largest : v).value) / std::sqrt(one_minus_power(o.beta2, s.step));
  Terms update = m / ((root + o.eps) * one_minus_power(o.beta1, s.step));
  return {-o.lr * (Terms(o.weight_decay * s.w) + update), {m, v, o.is_approx ? s.g : s.moment[2], largest}};
}

// Grams and Cautious: Adam with eps beside the root that is not corrected, of a changed first moment.
template <class Options>
Step64 adam_towards(const Options& o, const Given& s, Terms m, Terms direction) {
  Terms v = average_of_squares(o.beta2, s.moment[1], s.g);
  double lr = o.lr;
  if (o.correct_bias) lr *= std::sqrt(one_minus_power(o.beta2, s.step)) / one_minus_power(o.beta1, s.step);
  return {Terms(-o.lr * o.weight_decay * s.w) - lr * direction / (std::sqrt(v.value) + o.eps), {m, v}};
}
inline Step64 formula(const GramsOptions& o, const Given& s) {
  Terms m = average(o.beta1, s.moment[0], s.g);
  return adam_towards(o, s, m, sign(s.g) * Terms(std::abs(m.value), m.largest));
}
inline Step64 formula(const CautiousAdamWOptions& o, const Given& s) {
  Terms m = average(o.beta1, s.moment[0], s.g);
  return adam_towards(o, s, m, m.value * s.g > 0 ? m : Terms(0));
}

}  // namespace forge::testing
