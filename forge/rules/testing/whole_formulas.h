#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "forge/rules/list.h"
#include "forge/rules/testing/authors_formulas.h"
#include "forge/rules/testing/terms.h"

// The rules that take several passes, in float64 over all elements of a weight, written from the classes that define
// them and not from the rules.
namespace forge::testing {

// The elements of a weight of (out, in), row by row; or of a vector.
struct WholeGiven {
  std::vector<Given> elements;
  double out, in;
  bool vector = false;

  double size() const { return out * in; }
  std::size_t row(std::size_t i) const { return i / static_cast<std::size_t>(in); }
  std::size_t col(std::size_t i) const { return i % static_cast<std::size_t>(in); }
};

// √Σ f(i)² over the elements.
template <class F>
double root_of_squares(const WholeGiven& s, F&& f) {
  double sum = 0;
  for (std::size_t i = 0; i < s.elements.size(); ++i) sum += f(i) * f(i);
  return std::sqrt(sum);
}

inline std::vector<Step64> whole_formula(const CautiousAdamWOptions& o, const WholeGiven& s) {
  double agree = 0;
  for (const Given& e : s.elements) agree += average(o.beta1, e.moment[0], e.g).value * e.g > 0;
  double share = std::max(agree / s.size(), 1e-3);
  std::vector<Step64> all;
  for (const Given& e : s.elements) {
    Terms m = average(o.beta1, e.moment[0], e.g);
    all.push_back(adam_towards(o, e, m, m.value * e.g > 0 ? m / share : Terms(0)));
  }
  return all;
}

inline std::vector<Step64> whole_formula(const StableAdamWOptions& o, const WholeGiven& s) {
  auto debiased = [&](double beta, std::int64_t t) {
    return beta * one_minus_power(beta, t - 1) / one_minus_power(beta, t);
  };
  std::vector<Terms> m, v;
  for (const Given& e : s.elements) {
    m.push_back(average(debiased(o.beta1, e.step), e.moment[0], e.g));
    v.push_back(average_of_squares(debiased(o.beta2, e.step), e.moment[1], e.g));
  }
  double sum = root_of_squares(
      s, [&](std::size_t i) { return s.elements[i].g / std::sqrt(std::max(v[i].value, o.eps * o.eps)); });
  double lr = o.lr / std::max(1.0, sum / std::sqrt(s.size()));
  double decay = o.weight_decay * (o.decouple_lr ? lr / o.max_lr : lr);
  std::vector<Step64> all;
  for (std::size_t i = 0; i < m.size(); ++i)
    all.push_back({Terms(-decay * s.elements[i].w) - lr * m[i] / (std::sqrt(v[i].value) + o.eps), {m[i], v[i]}});
  return all;
}

inline std::vector<Step64> whole_formula(const LambOptions& o, const WholeGiven& s) {
  double keep = o.decoupled_decay ? 1 - o.lr * o.weight_decay : 1, l2 = o.decoupled_decay ? 0 : o.weight_decay;
  std::vector<Terms> m, v, r;
  for (const Given& e : s.elements) {
    m.push_back(o.grad_averaging ? average(o.beta1, e.moment[0], e.g) : o.beta1 * Terms(e.moment[0]) + Terms(e.g));
    v.push_back(average_of_squares(o.beta2, e.moment[1], e.g));
    double c1 = o.bias_correction ? one_minus_power(o.beta1, e.step) : 1;
    double c2 = o.bias_correction ? one_minus_power(o.beta2, e.step) : 1;
    r.push_back(m.back() / c1 / (std::sqrt(v.back().value / c2) + o.eps) + Terms(l2 * keep * e.w));
  }
  double norm_of_w = root_of_squares(s, [&](std::size_t i) { return keep * s.elements[i].w; });
  double norm_of_r = root_of_squares(s, [&](std::size_t i) { return r[i].value; });
  double ratio = norm_of_w > 0 && norm_of_r > 0 ? norm_of_w / norm_of_r : 1;
  if (o.weight_decay == 0 && !o.always_adapt) ratio = 1;
  if (o.trust_clip) ratio = std::min(ratio, 1.0);
  std::vector<Step64> all;
  for (std::size_t i = 0; i < m.size(); ++i)
    all.push_back({Terms((keep - 1) * s.elements[i].w) - o.lr * ratio * r[i], {m[i], v[i]}});
  return all;
}

// What torch.optim.Adafactor and AdaLomo share; least: of the mean of the rows' numbers, and of an element's square.
struct Factored64 {
  double k, added, least_mean, least;

  Terms towards(double old, double square) const { return (1 - k) * Terms(old) + k * Terms(square + added); }

  // U, and the new moments.
  std::vector<Step64> directions(const WholeGiven& s) const {
    std::vector<Step64> all;
    if (s.vector) {
      for (const Given& e : s.elements) {
        Terms v = towards(e.moment[0], e.g * e.g);
        all.push_back({Terms(e.g / std::sqrt(std::max(v.value, least))), {v}});
      }
      return all;
    }
    std::vector<double> row_mean(static_cast<std::size_t>(s.out)), col_mean(static_cast<std::size_t>(s.in));
    for (std::size_t i = 0; i < s.elements.size(); ++i) {
      double square = s.elements[i].g * s.elements[i].g;
      row_mean[s.row(i)] += square / s.in;
      col_mean[s.col(i)] += square / s.out;
    }
    double mean = 0;
    for (std::size_t i = 0; i < s.elements.size(); ++i)
      mean += towards(s.elements[i].moment[0], row_mean[s.row(i)]).value / s.size();
    for (std::size_t i = 0; i < s.elements.size(); ++i) {
      const Given& e = s.elements[i];
      Terms R = towards(e.moment[0], row_mean[s.row(i)]), C = towards(e.moment[1], col_mean[s.col(i)]);
      double v = std::max(R.value * C.value / std::max(mean, least_mean), least);
      all.push_back({Terms(e.g / std::sqrt(v)), {R, C}});
    }
    return all;
  }
};

inline double rms(const WholeGiven& s, const std::vector<Step64>& directions) {
  return root_of_squares(s, [&](std::size_t i) { return directions[i].change.value; }) / std::sqrt(s.size());
}
inline double rms_of_weight(const WholeGiven& s) {
  return root_of_squares(s, [&](std::size_t i) { return s.elements[i].w; }) / std::sqrt(s.size());
}

// Of a weight in fp32.
inline std::vector<Step64> whole_formula(const AdafactorOptions& o, const WholeGiven& s) {
  double t = static_cast<double>(s.elements[0].step), eps1 = o.eps1 < 0 ? std::ldexp(1, -23) : o.eps1;
  std::vector<Step64> all = Factored64{std::pow(t, o.beta2_decay), 0, eps1, eps1 * eps1}.directions(s);
  double alpha = std::max(o.eps2, rms_of_weight(s)) * std::min(o.lr, 1 / std::sqrt(t));
  double step = (o.maximize ? -alpha : alpha) / std::max(1.0, rms(s, all) / o.d);
  for (std::size_t i = 0; i < all.size(); ++i)
    all[i].change = Terms(-o.lr * o.weight_decay * s.elements[i].w) - step * all[i].change;
  return all;
}

inline std::vector<Step64> whole_formula(const AdaLomoOptions& o, const WholeGiven& s) {
  double t = static_cast<double>(s.elements[0].step);
  std::vector<Step64> all = Factored64{std::pow(t, o.decay_rate), o.eps1, 0, 0}.directions(s);
  double lr = o.lr * std::max(o.eps2, rms_of_weight(s));
  double clip = std::max(1.0, rms(s, all) / o.clip_threshold);
  for (std::size_t i = 0; i < all.size(); ++i)
    all[i].change = Terms(-lr * o.weight_decay * s.elements[i].w) - lr / clip * all[i].change;
  return all;
}

// With a direction that is taken for orthogonal as it is: the iteration is torch/orthogonal.h's.
inline std::vector<Step64> whole_formula(const MuonOptions& o, const WholeGiven& s) {
  double factor = o.match_rms_adamw ? 0.2 * std::sqrt(std::max(s.out, s.in)) : std::sqrt(std::max(1.0, s.out / s.in));
  std::vector<Step64> all;
  for (const Given& e : s.elements) {
    Terms b = average(o.momentum, e.moment[0], e.g);
    Terms direction = o.nesterov ? (1 - o.momentum) * Terms(e.g) + o.momentum * b : b;
    all.push_back({Terms(-o.lr * o.weight_decay * e.w) - o.lr * factor * direction, {b}});
  }
  return all;
}

}  // namespace forge::testing
