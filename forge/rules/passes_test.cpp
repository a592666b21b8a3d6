// Contract 8 of rules that take several passes: all passes together are within a few units of the formula for the whole
// weight in float64, given the same fp32 gradient and state.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
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
      WholeGiven given = {.elements = {}, .out = double(whole.out), .in = double(whole.in)};
      for (const Element& e : whole.elements) {
        std::vector<double>& m = old.emplace_back();
        for (const Scalar& x : e.moments) m.push_back(x.x);
      }
      for (std::size_t i = 0; i < whole.elements.size(); ++i)
        given.elements.push_back({whole.elements[i].w.x, whole.elements[i].g.x, old[i].data(), p.step});
      std::vector<Step64> expected = whole_formula(options, given);
      run_passes<Rule>(whole, Rule::prepare(options, p));
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

TEST(Passes, TogetherAreCloseToTheFormulaOfTheWhole) {
  int rules = 0;
  RuleList::for_each([&]<class Rule>() {
    if constexpr (has_next_pass<Rule>()) {
      EXPECT_LE(worst_of_all<Rule>(), kUnits<Rule>) << Rule::kName;
      rules += worst_of_all<Rule>() > 0;
    }
  });
  EXPECT_EQ(rules, 4);
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
    run_passes<Rule>(whole, Rule::prepare(options, 1));
    return std::isnan(whole.elements[1].w.x);
  };
  EXPECT_TRUE(reaches.operator()<StableAdamWMoments>({}));
  EXPECT_TRUE(reaches.operator()<LambMoments>({}));
  EXPECT_TRUE(reaches.operator()<MuonMomentum>({}));
  EXPECT_TRUE(reaches.operator()<CautiousAdamWMask>({}));
}

}  // namespace
}  // namespace forge::testing
