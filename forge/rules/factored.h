#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

// What Adafactor and AdaLomo share: a second moment that is a row's number times a column's.
//   R ← R + k (mean of the row's g² + added − R),   C ← C + k (mean of the column's g² + added − C)
//   V = max(R Cᵀ / max(mean of R, least_mean), least)
//   U = g / √V
//   w ← keep · w − rate · U / max(1, rms(U) / d)        rms(x)² is the mean of x²
// keep and rate depend on rms(w). A vector keeps V ← V + k (g² + added − V) itself, and U = g / √max(V, least).
//
// Passes: the sums of g² over rows and columns, which R and C are updated from; rms(U) and rms(w); the weight. Each
// needs the gradient: its products are computed three times.
//
// A Family, of one optimizer, has Options, the keys of R, C and V, the names of its four passes and
//   static FactoredPlan plan(const Options&, std::int64_t t)
namespace forge::rules {

// What the passes are made from.
struct FactoredPlan {
  double k, added;
  double least_mean, least;     // below 0: the epsilon of the weight's dtype, and its square
  double rate, lowest_rms, d;   // rate is multiplied by max(lowest_rms, rms(w))
  double decay, decay_of_rate;  // keep = 1 − decay − decay_of_rate · rate

  FactoredPlan of(const WeightTraits& weight) const {
    FactoredPlan plan = *this;
    if (plan.least_mean < 0) plan.least_mean = weight.epsilon, plan.least = weight.epsilon * weight.epsilon;
    return plan;
  }
};

// The numbers that a pass sums the squares of, and w ← keep · w − rate · U.
struct FactoredMove {
  float keep, minus_rate;

  static constexpr int kSums = 2;  // U, w
  FORGE_INLINE static FactoredMove from(const FactoredPlan& p, const Sums& sums) {
    double rate = p.rate * std::max(p.lowest_rms, std::sqrt(sums.mean(1)));
    double clip = std::max(1.0, std::sqrt(sums.mean(0)) / p.d);
    return {.keep = static_cast<float>(1 - p.decay - p.decay_of_rate * rate),
            .minus_rate = static_cast<float>(-rate / clip)};
  }
  template <class V>
  FORGE_INLINE V moved(V w, V u) const {
    return fma(V(minus_rate), u, V(keep) * w);
  }
};

// V of an element from R and C.
struct FactoredSquare {
  float inverse_mean, least;

  template <class V>
  FORGE_INLINE V of(const V* moment) const {
    return max(V(inverse_mean) * moment[0] * moment[1], V(least));
  }
};

template <class Family>
struct Factored {
  using Options = typename Family::Options;
  static constexpr const char* kName = Family::kNames[1];
  static constexpr std::array kMoments = {Moment{Family::kKeys[0], Sign::not_negative, Extent::row},
                                          Moment{Family::kKeys[1], Sign::not_negative, Extent::column}};
  static constexpr bool kWritesMoments = false;

  struct Step {
    FactoredSquare square;
    FactoredMove move;
  };
  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    w = s.move.moved(w, g / sqrt(s.square.of(moment)));
  }
};

template <class Family>
struct FactoredVector {
  using Options = typename Family::Options;
  static constexpr const char* kName = Family::kNames[3];
  static constexpr std::array kMoments = {Moment{Family::kKeys[2], Sign::not_negative}};
  static constexpr bool kWritesMoments = false;

  struct Step {
    float least;
    FactoredMove move;

    template <class V>
    FORGE_INLINE V direction(V g, const V* moment) const {
      return g / sqrt(max(moment[0], V(least)));
    }
  };
  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    w = s.move.moved(w, s.direction(g, moment));
  }
};

// The vector's first pass.
template <class Family>
struct FactoredVectorSums {
  using Options = typename Family::Options;
  using Next = FactoredVector<Family>;
  static constexpr const char* kName = Family::kNames[2];
  static constexpr std::array kMoments = Next::kMoments;
  static constexpr int kSums = FactoredMove::kSums;
  static constexpr bool kWritesWeight = false;

  struct Step {
    Lerp to_square;
    float added;
    typename Next::Step rest;
    FactoredPlan plan;
  };
  static Step of(const FactoredPlan& plan) {
    return {.to_square = Lerp(plan.k),
            .added = static_cast<float>(plan.added),
            .rest = {.least = static_cast<float>(plan.least), .move = {}},
            .plan = plan};
  }
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return of(Family::plan(o, p.step).of({}));
  }
  FORGE_INLINE static typename Next::Step next_pass(const Step& s, const Sums& sums) {
    return {.least = s.rest.least, .move = FactoredMove::from(s.plan, sums)};
  }
  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s, V* numbers) {
    moment[0] = lerp(moment[0], fma(g, g, V(s.added)), s.to_square);
    numbers[0] = s.rest.direction(g, moment);
    numbers[1] = w;
  }
};

// A matrix's pass behind the sums of rows and columns.
template <class Family>
struct FactoredSums {
  using Options = typename Family::Options;
  using Next = Factored<Family>;
  using OfVector = FactoredVectorSums<Family>;
  static constexpr Takes kTakes = Takes::vectors_and_matrices;
  static constexpr const char* kName = Family::kNames[0];
  static constexpr std::array kMoments = Next::kMoments;
  static constexpr int kSums = FactoredMove::kSums;
  static constexpr bool kWritesWeight = false, kWritesMoments = false;

  struct Step {
    FactoredSquare square;
    FactoredPlan plan;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.square = {}, .plan = Family::plan(o, p.step)};
  }
  static Step for_weight(const Step& s, const WeightTraits& weight) {
    return {.square = s.square, .plan = s.plan.of(weight)};
  }
  static typename OfVector::Step for_vector(const Step& s, const WeightTraits& weight) {
    return OfVector::of(s.plan.of(weight));
  }
  static Step with_lines(const Step& s, const LineSums& squares, std::span<float> R, std::span<float> C) {
    const FactoredPlan& p = s.plan;
    auto advance = [&](std::span<const double> sums, std::size_t elements, std::span<float> means) {
      double total = 0;
      for (std::size_t i = 0; i < means.size(); ++i) {
        double mean = sums[i] / static_cast<double>(elements) + p.added;
        means[i] = static_cast<float>(means[i] + p.k * (mean - means[i]));
        total += means[i];
      }
      return total / static_cast<double>(means.size());
    };
    double mean = advance(squares.of_rows, C.size(), R);
    advance(squares.of_columns, R.size(), C);
    return {.square = {.inverse_mean = static_cast<float>(1 / std::max(mean, p.least_mean)),
                       .least = static_cast<float>(p.least)},
            .plan = p};
  }
  FORGE_INLINE static typename Next::Step next_pass(const Step& s, const Sums& sums) {
    return {.square = s.square, .move = FactoredMove::from(s.plan, sums)};
  }
  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s, V* numbers) {
    numbers[0] = g / sqrt(s.square.of(moment));
    numbers[1] = w;
  }
};

}  // namespace forge::rules
