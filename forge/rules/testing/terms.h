#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "forge/rules/list.h"

// What formulas in float64 are written in.
namespace forge::testing {

// A number and the largest of the terms that it is a sum of.
struct Terms {
  double value = 0, largest = 0;

  Terms() = default;
  Terms(double x) : value(x), largest(std::abs(x)) {}  // NOLINT: a number is a sum of itself
  Terms(double v, double l) : value(v), largest(l) {}
  friend Terms operator+(Terms a, Terms b) { return {a.value + b.value, std::max(a.largest, b.largest)}; }
  friend Terms operator-(Terms a, Terms b) { return {a.value - b.value, std::max(a.largest, b.largest)}; }
  friend Terms operator*(double factor, Terms a) { return {factor * a.value, std::abs(factor) * a.largest}; }
  friend Terms operator/(Terms a, double divisor) { return {a.value / divisor, a.largest / std::abs(divisor)}; }
};
inline Terms square(Terms a) { return {a.value * a.value, std::abs(a.value) * a.largest}; }

// What an update is given: a weight, its gradient, its moments (kMaxMoments, also where the rule has fewer) and the
// number of the update.
struct Given {
  double w, g;
  const double* moment;
  std::int64_t step;
};

// What it does: the change of w, and the new moments.
struct Step64 {
  Terms change;
  Terms moment[kMaxMoments];

  Step64(Terms change_of_w, std::initializer_list<Terms> moments) : change(change_of_w) {
    std::copy(moments.begin(), moments.end(), moment);
  }
};

inline double sign(double x) { return x > 0 ? 1 : x < 0 ? -1 : 0; }
inline double one_minus_power(double beta, std::int64_t t) { return 1 - std::pow(beta, static_cast<double>(t)); }
inline Terms average(double beta, double old, Terms g) { return beta * Terms(old) + (1 - beta) * g; }
inline Terms average_of_squares(double beta, double old, Terms g) { return beta * Terms(old) + (1 - beta) * square(g); }
// The gradient as most rules begin: negated if maximize, with the decay added.
template <class Options>
Terms gradient(const Options& o, const Given& s, double weight_decay) {
  return Terms(o.maximize ? -s.g : s.g) + Terms(weight_decay * s.w);
}

}  // namespace forge::testing
