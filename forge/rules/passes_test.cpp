// Contract 8 of rules that take several passes: all passes together are within a few units of the formula for the whole
// weight in float64, given the same fp32 gradient and state.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "forge/base/scalar.h"
#include "forge/base/testing/closeness.h"
#include "forge/rules/list.h"
#include "forge/rules/testing/cases.h"
#include "forge/rules/testing/whole_formulas.h"

namespace forge::testing {
namespace {

using namespace rules;

struct Element {
  Scalar w, g, moments[kMaxMoments];
};

// A weight of (out, in) with its gradient.
struct Whole {
  std::int64_t out, in;
  std::vector<Element> elements;
};

// Brings the numbers of rows and columns up to date, which every element has its own copy of.
template <class Rule>
typename Rule::Step with_lines_of(Whole& whole, const typename Rule::Step& step) {
  auto out = static_cast<std::size_t>(whole.out), in = static_cast<std::size_t>(whole.in);
  std::vector<double> of_rows(out), of_columns(in);
  std::vector<float> rows(out), columns(in);
  for (std::size_t i = 0; i < out * in; ++i) {
    const Element& e = whole.elements[i];
    of_rows[i / in] += static_cast<double>(e.g.x) * e.g.x;
    of_columns[i % in] += static_cast<double>(e.g.x) * e.g.x;
    rows[i / in] = e.moments[0].x;
    columns[i % in] = e.moments[1].x;
  }
  typename Rule::Step next = Rule::with_lines(Rule::for_weight(step, {}), {of_rows, of_columns}, rows, columns);
  for (std::size_t i = 0; i < out * in; ++i) {
    whole.elements[i].moments[0] = Scalar(rows[i / in]);
    whole.elements[i].moments[1] = Scalar(columns[i % in]);
  }
  return next;
}

template <class Rule>
void run_passes(Whole& whole, const typename Rule::Step& step);

// All passes of an update.
template <class Rule>
void update_whole(Whole& whole, const typename Rule::Step& step) {
  if constexpr (has_lines<Rule>())
    run_passes<Rule>(whole, with_lines_of<Rule>(whole, step));
  else
    run_passes<Rule>(whole, step);
}

// The pass, and those behind it. A direction takes the gradient's place.
template <class Rule>
void run_passes(Whole& whole, const typename Rule::Step& step) {
  constexpr RuleInfo kInfo = rule_info<Rule>();
  Sums sums = {.of_squares = {}, .out = whole.out, .in = whole.in};
  for (Element& e : whole.elements) {
    Element next = e;
    Scalar numbers[kMaxSums];
    Scalar g(kInfo.reads_gradient ? e.g.x : std::numeric_limits<float>::quiet_NaN());
    update_element<Rule>(next.w, g, next.moments, step, numbers);
    if (makes_direction<Rule>()) e.g = next.w;
    if (kInfo.writes_weight && !makes_direction<Rule>()) e.w = next.w;
    if (kInfo.writes_moments) std::copy_n(next.moments, kMaxMoments, e.moments);
    for (int k = 0; k < kInfo.sums; ++k)
      sums.of_squares[static_cast<std::size_t>(k)] += static_cast<double>(numbers[k].x) * numbers[k].x;
  }
  if constexpr (has_next_pass<Rule>()) run_passes<typename Rule::Next>(whole, Rule::next_pass(step, sums));
}

// The worst unit (base/testing/closeness.h) of some updates of some weights of different shapes and magnitudes.
template <class Rule>
double worst_of_whole(const typename Rule::Options& options) {
  constexpr bool kIsVector = !has_lines<Rule>();
  Random random(17);
  double worst = 0;
  for (Whole whole : {Whole{12, 5, {}}, Whole{4, 30, {}}, Whole{1, 7, {}}, Whole{40, 50, {}}}) {
    double magnitude = -5 + 6 * random.unit();
    whole.elements.resize(static_cast<std::size_t>(whole.out * whole.in));
    for (Element& e : whole.elements) {
      e.w = Scalar(random.log_uniform(-1, 1));
      for (Scalar& m : e.moments) m = Scalar(0.f);
    }
    for (Progress p; p.step <= 8; p = next_progress<Rule>(options, p)) {
      // A burst, so that averages are surprised; and few that agree with their average.
      double burst = p.step == 5 ? 1.5 : 0;
      for (Element& e : whole.elements) e.g = Scalar(random.log_uniform(magnitude - 1 + burst, magnitude + burst));
      std::vector<std::vector<double>> old;
      WholeGiven given = {.elements = {}, .out = double(whole.out), .in = double(whole.in), .vector = kIsVector};
      for (const Element& e : whole.elements) {
        std::vector<double>& m = old.emplace_back();
        for (const Scalar& x : e.moments) m.push_back(x.x);
      }
      for (std::size_t i = 0; i < whole.elements.size(); ++i)
        given.elements.push_back({whole.elements[i].w.x, whole.elements[i].g.x, old[i].data(), p.step});
      std::vector<Step64> expected = whole_formula(options, given);
      update_whole<Rule>(whole, Rule::prepare(options, p));
      for (std::size_t i = 0; i < whole.elements.size(); ++i) {
        const Given& was = given.elements[i];
        worst = std::max(
            worst, units(whole.elements[i].w.x - was.w - expected[i].change.value, was.w, expected[i].change.largest));
        for (std::size_t k = 0; k < Rule::kMoments.size(); ++k)
          worst = std::max(worst, units(whole.elements[i].moments[k].x - expected[i].moment[k].value, was.moment[k],
                                        expected[i].moment[k].largest));
      }
    }
  }
  return worst;
}

// Calls f(options) for some options of the optimizer that a rule is the first pass of.
template <class Rule, class F>
void for_each_options_of(F&& f) {
  using O = typename Rule::Options;
  if constexpr (std::is_same_v<O, CautiousAdamWOptions>)
    for (O o : {O{}, O{.lr = 1e-2, .beta1 = 0.4, .beta2 = 0.9, .weight_decay = 0.1}, O{.correct_bias = false}}) f(o);
  if constexpr (std::is_same_v<O, StableAdamWOptions>)
    for (O o : {O{}, O{.lr = 1e-2, .beta1 = 0.5, .eps = 0.1, .weight_decay = 0.3},
                O{.lr = 1e-2, .weight_decay = 0.5, .decouple_lr = true, .max_lr = 0.1}})
      f(o);
  if constexpr (std::is_same_v<O, LambOptions>)
    for (O o : {O{}, O{.lr = 1e-2, .beta1 = 0.5, .weight_decay = 0}, O{.weight_decay = 0, .always_adapt = true},
                O{.lr = 0.1, .weight_decay = 2, .decoupled_decay = true},
                O{.weight_decay = 0.1, .bias_correction = false, .grad_averaging = false}, O{.trust_clip = true}})
      f(o);
  if constexpr (std::is_same_v<O, AdafactorOptions>)
    for (O o : {O{}, O{.lr = 0.1, .beta2_decay = -0.3, .eps1 = 1e-3, .eps2 = 2, .weight_decay = 0.3},
                O{.lr = 1, .eps1 = 0.1, .d = 1.2, .maximize = true}})
      f(o);
  if constexpr (std::is_same_v<O, AdaLomoOptions>)
    for (O o : {O{}, O{.lr = 0.1, .eps1 = 1e-3, .eps2 = 2, .weight_decay = 0.3},
                O{.lr = 0.1, .clip_threshold = 0.3, .decay_rate = -0.2}})
      f(o);
  if constexpr (std::is_same_v<O, MuonOptions>)
    for (O o : {O{.lr = 0.1}, O{.lr = 0.1, .momentum = 0.4, .nesterov = false, .match_rms_adamw = true}}) f(o);
}

template <class Rule>
double worst_of_all() {
  double worst = 0;
  for_each_options_of<Rule>([&](const auto& options) { worst = std::max(worst, worst_of_whole<Rule>(options)); });
  return worst;
}

// Measured, and rounded up.
template <class Rule>
constexpr double kUnits = 0;
template <>
constexpr double kUnits<CautiousAdamWMask> = 3;
template <>
constexpr double kUnits<StableAdamWMoments> = 2;
template <>
constexpr double kUnits<LambMoments> = 4;
template <>
constexpr double kUnits<MuonMomentum> = 3;
template <>
constexpr double kUnits<AdafactorSums> = 3;
template <>
constexpr double kUnits<AdafactorVectorSums> = 3;
template <>
constexpr double kUnits<AdaLomoSums> = 3;
template <>
constexpr double kUnits<AdaLomoVectorSums> = 3;

TEST(Passes, TogetherAreCloseToTheFormulaOfTheWhole) {
  int rules = 0;
  RuleList::for_each([&]<class Rule>() {
    if constexpr (has_next_pass<Rule>()) {
      EXPECT_LE(worst_of_all<Rule>(), kUnits<Rule>) << Rule::kName;
      rules += worst_of_all<Rule>() > 0;
    }
  });
  EXPECT_EQ(rules, 8);
}

template <class Mutant, class Rule>
void expect_seen(const char* what) {
  EXPECT_GT(worst_of_all<Mutant>(), kUnits<Rule>) << Rule::kName << ": " << what << ", and nothing is seen";
}

template <class Rule, class F>
struct NextMistaken : Rule {
  static auto next_pass(const typename Rule::Step& s, const Sums& sums) { return F{}(s, sums); }
};
template <class Rule, class F>
void expect_next_pass_seen(const char* what, F) {
  expect_seen<NextMistaken<Rule, F>, Rule>(what);
}
template <class Rule, class F>
struct PassMistaken : Rule {
  template <class V>
  static void update(V& w, V g, V* m, const typename Rule::Step& s, V* numbers) {
    Rule::update(w, g, m, s, numbers);
    F{}(w, g, m, s, numbers);
  }
};
template <class Rule, class F>
void expect_numbers_seen(const char* what, F) {
  expect_seen<PassMistaken<Rule, F>, Rule>(what);
}

TEST(Passes, MistakesInWhatGoesFromOneToTheNextAreSeen) {
  expect_next_pass_seen<CautiousAdamWMask>("not rescaled", [](auto& s, auto&) { return s; });
  expect_next_pass_seen<CautiousAdamWMask>("by the root of the mean", [](auto& s, auto& sums) {
    auto next = s;
    next.step_size /= static_cast<float>(std::sqrt(sums.mean(0)));
    return next;
  });
  expect_numbers_seen<CautiousAdamWMask>("the old average's sign", [](auto&, auto g, auto* m, auto&, auto* numbers) {
    numbers[0] = select(m[0] * g > Scalar(0.f), Scalar(1.f), Scalar(0.f));
  });
  expect_next_pass_seen<StableAdamWMoments>("the mean for its root", [](auto& s, auto& sums) {
    Sums squared = sums;
    squared.of_squares[0] = sums.of_squares[0] * sums.mean(0);
    return StableAdamWMoments::next_pass(s, squared);
  });
  expect_next_pass_seen<StableAdamWMoments>("decay with the whole rate", [](auto& s, auto& sums) {
    auto next = StableAdamWMoments::next_pass(s, sums);
    next.keep = static_cast<float>(1 - s.lr * s.decay);
    return next;
  });
  expect_numbers_seen<StableAdamWMoments>("eps added", [](auto&, auto g, auto* m, auto& s, auto* numbers) {
    numbers[0] = g / (sqrt(m[1]) + Scalar(s.eps));
  });
  expect_next_pass_seen<LambMoments>("the inverse ratio", [](auto& s, auto& sums) {
    Sums swapped = sums;
    std::swap(swapped.of_squares[0], swapped.of_squares[1]);
    return LambMoments::next_pass(s, swapped);
  });
  expect_next_pass_seen<LambMoments>("not clipped", [](auto s, auto& sums) {
    s.clips = false;
    return LambMoments::next_pass(s, sums);
  });
  expect_next_pass_seen<LambMoments>("adapted always", [](auto s, auto& sums) {
    s.adapts = true;
    return LambMoments::next_pass(s, sums);
  });
  expect_numbers_seen<LambMoments>("norm before the decay",
                                   [](auto& w, auto, auto*, auto&, auto* numbers) { numbers[0] = w; });
  expect_next_pass_seen<MuonMomentum>("out and in swapped", [](auto& s, auto& sums) {
    return MuonMomentum::next_pass(s, {.of_squares = {}, .out = sums.in, .in = sums.out});
  });
  expect_next_pass_seen<MuonMomentum>("the other factor", [](auto s, auto& sums) {
    s.match_rms_adamw = !s.match_rms_adamw;
    return MuonMomentum::next_pass(s, sums);
  });
}

template <class Rule, class F>
struct LinesMistaken : Rule {
  static auto with_lines(const typename Rule::Step& s, const LineSums& sums, std::span<float> R, std::span<float> C) {
    return F{}(s, sums, R, C);
  }
};
template <class Rule, class F>
void expect_lines_seen(const char* what, F) {
  expect_seen<LinesMistaken<Rule, F>, Rule>(what);
}

TEST(Passes, MistakesInNumbersOfRowsAndColumnsAreSeen) {
  using A = AdafactorSums;
  using L = AdaLomoSums;
  expect_lines_seen<A>("not updated", [](auto& s, auto&, auto, auto) { return s; });
  expect_lines_seen<A>("rows' numbers not updated", [](auto& s, auto& sums, auto R, auto C) {
    std::vector<float> copy(R.begin(), R.end());
    return A::with_lines(s, sums, copy, C);
  });
  expect_lines_seen<A>("columns' numbers not updated", [](auto& s, auto& sums, auto R, auto C) {
    std::vector<float> copy(C.begin(), C.end());
    return A::with_lines(s, sums, R, copy);
  });
  expect_lines_seen<A>("the old rows' mean", [](auto& s, auto& sums, auto R, auto C) {
    auto old = std::accumulate(R.begin(), R.end(), 0.0) / static_cast<double>(R.size());
    auto next = A::with_lines(s, sums, R, C);
    next.square.inverse_mean = static_cast<float>(1 / std::max(old, s.plan.least_mean));
    return next;
  });
  expect_lines_seen<A>("sums for means", [](auto& s, auto& sums, auto R, auto C) {
    std::vector<double> rows(sums.of_rows.begin(), sums.of_rows.end());
    for (double& x : rows) x *= static_cast<double>(C.size());
    return A::with_lines(s, {rows, sums.of_columns}, R, C);
  });
  expect_lines_seen<A>("no least mean", [](auto s, auto& sums, auto R, auto C) {
    s.plan.least_mean = 0;
    return A::with_lines(s, sums, R, C);
  });
  expect_lines_seen<A>("no least square", [](auto s, auto& sums, auto R, auto C) {
    s.plan.least = 0;
    return A::with_lines(s, sums, R, C);
  });
  expect_lines_seen<L>("nothing added", [](auto s, auto& sums, auto R, auto C) {
    s.plan.added = 0;
    return L::with_lines(s, sums, R, C);
  });
  expect_next_pass_seen<A>("U not clipped", [](auto& s, auto sums) {
    sums.of_squares[0] = 0;
    return A::next_pass(s, sums);
  });
  expect_next_pass_seen<A>("a rate that is not the weight's", [](auto& s, auto sums) {
    sums.of_squares[1] = static_cast<double>(sums.out * sums.in);
    return A::next_pass(s, sums);
  });
  expect_next_pass_seen<L>("decay that is not the weight's", [](auto& s, auto& sums) {
    auto next = L::next_pass(s, sums);
    next.move.keep = static_cast<float>(1 - 0.1 * s.plan.decay_of_rate);
    return next;
  });
  expect_next_pass_seen<AdaLomoVectorSums>("another threshold", [](auto s, auto& sums) {
    s.plan.d = 1;
    return AdaLomoVectorSums::next_pass(s, sums);
  });
}

TEST(Passes, AVectorHasARuleOfItsOwnAndTheEpsilonOfItsDtype) {
  RuleStep rule = OptimizingOf<AdafactorOptions>::prepare({}, 1);
  EXPECT_STREQ(rule.for_weight({.dimensions = 2, .epsilon = 0.25}).name(), "adafactor_sums");
  EXPECT_EQ(rule.for_weight({.dimensions = 2, .epsilon = 0.25}).get<AdafactorSums>()->plan.least_mean, 0.25);
  for (std::int64_t dimensions : {0, 1}) {
    RuleStep of_vector = rule.for_weight({.dimensions = dimensions, .epsilon = 0.25});
    ASSERT_STREQ(of_vector.name(), "adafactor_vector_sums");
    EXPECT_EQ(of_vector.get<AdafactorVectorSums>()->rest.least, 0.0625f);
  }
  RuleStep given = OptimizingOf<AdafactorOptions>::prepare({.eps1 = 0.5}, 1).for_weight({.epsilon = 0.25});
  EXPECT_EQ(given.get<AdafactorSums>()->plan.least, 0.25);
  RuleStep other = OptimizingOf<LambOptions>::prepare({}, 1);
  EXPECT_STREQ(other.for_weight({.dimensions = 1}).name(), other.name());
}

TEST(Passes, TheStepOfTheLastHasNoNext) {
  RuleStep first = RuleStep::of<LambMoments>(LambMoments::prepare({}, 1));
  std::optional<RuleStep> second = first.next(kSums);
  ASSERT_TRUE(second);
  EXPECT_STREQ(second->name(), "lamb");
  EXPECT_FALSE(second->next(kSums));
}

TEST(Passes, ANaNInAGradientReachesTheWeight) {
  auto reaches = []<class Rule>(const typename Rule::Options& options) {
    Whole whole = {2, 2, std::vector<Element>(4)};
    for (Element& e : whole.elements) {
      e.w = e.g = Scalar(0.5f);
      for (Scalar& m : e.moments) m = Scalar(0.f);
    }
    whole.elements[1].g = Scalar(std::nanf(""));
    update_whole<Rule>(whole, Rule::prepare(options, 1));
    return std::isnan(whole.elements[1].w.x);
  };
  EXPECT_TRUE(reaches.operator()<StableAdamWMoments>({}));
  EXPECT_TRUE(reaches.operator()<LambMoments>({}));
  EXPECT_TRUE(reaches.operator()<MuonMomentum>({}));
  EXPECT_TRUE(reaches.operator()<CautiousAdamWMask>({}));
  EXPECT_TRUE(reaches.operator()<AdafactorSums>({}));
  EXPECT_TRUE(reaches.operator()<AdaLomoVectorSums>({}));
}

}  // namespace
}  // namespace forge::testing
