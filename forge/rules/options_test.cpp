// What holds of every rule of the list and its options, whatever it computes.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "forge/base/scalar.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/refusal.h"
#include "forge/rules/list.h"
#include "forge/rules/testing/cases.h"
#include "forge/rules/testing/distance.h"

namespace forge::testing {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<double> outside(Bounds bounds) {
  switch (bounds) {
    case Bounds::none:
      return {};
    case Bounds::not_negative:
      return {-1, kNaN};
    case Bounds::not_positive:
      return {0.5, kNaN};
    case Bounds::positive:
      return {0, -1, kNaN};
    case Bounds::below_one:
      return {-0.5, 1, 2, kNaN};
    case Bounds::up_to_one:
      return {-0.5, 2, kNaN};
    case Bounds::inside_one:
      return {-0.5, 0, 1, kNaN};
    case Bounds::one_or_more:
      return {0.5, kNaN};
    case Bounds::above_one:
      return {0.5, 1, kNaN};
  }
  return {};
}

// Calls f(optimizer's options) for each optimizer of the list.
template <class F>
void for_each_options(F&& f) {
  RuleList::for_each_optimizer([&]<class O>() { f.template operator()<O>(typename O::Options{}); });
}

TEST(Options, OutsideTheirBoundsAreRefusedByName) {
  for_each_options([]<class O>(const auto& defaults) {
    int fields = 0;
    O::Options::fields(defaults, [&](const Field&, const auto&) { ++fields; });
    for (int i = 0; i < fields; ++i) {
      std::vector<double> values = {0};
      for (std::size_t k = 0; k < values.size(); ++k) {
        typename O::Options options = defaults;
        int at = 0;
        bool set = false;
        std::string name;
        O::Options::fields(options, [&](const Field& field, auto& value) {
          using Value = std::remove_reference_t<decltype(value)>;
          if (at++ != i || std::is_same_v<Value, bool>) return;
          values = outside(field.bounds);
          if (values.empty() || (std::is_same_v<Value, int> && values[k] != std::floor(values[k]))) return;
          value = static_cast<Value>(values[k]);
          name = field.name;
          set = true;
        });
        if (set) {
          EXPECT_TRUE(refuses([&] { O::prepare(options, 1); }, {O::Options::kName, name + " is ", "give "})) << name;
        }
      }
    }
    EXPECT_TRUE(refuses([&] { O::prepare(defaults, 0); }, {O::Options::kName, "step is 0"}));
    EXPECT_TRUE(refuses([&] { O::prepare(defaults, -3); }, {O::Options::kName, "step is -3"}));
  });
}

TEST(Options, HaveOneNameEach) {
  std::set<std::string> optimizers, rules;
  for_each_options([&]<class O>(const auto& defaults) {
    EXPECT_TRUE(optimizers.insert(O::Options::kName).second) << O::Options::kName;
    std::set<std::string> fields;
    O::Options::fields(defaults,
                       [&](const Field& f, const auto&) { EXPECT_TRUE(fields.insert(f.name).second) << f.name; });
  });
  RuleList::for_each([&]<class Rule>() { EXPECT_TRUE(rules.insert(Rule::kName).second) << Rule::kName; });
}

TEST(Options, ChooseTheRuleOfTheirCase) {
  RuleList::for_each_optimizer([]<class O>() {
    for_each_arithmetic_case([]<class Rule>(const Case<Rule>& c) {
      using rules::SophiaHessian, rules::SophiaG;
      if constexpr (std::is_same_v<typename O::Options, typename Rule::Options>) {
        using Chosen = std::conditional_t<std::is_same_v<Rule, SophiaHessian>, SophiaG, Rule>;
        EXPECT_STREQ(O::prepare(c.options, 1).name(), Chosen::kName) << c.name;
      }
    });
  });
}

// A weight with a zero gradient that never had another one stays, bit for bit, and so do its moments. (But −0 may
// become 0, as in torch: −0 + 0 is 0.)
TEST(ZeroGradient, ChangesNothingWithoutDecay) {
  const std::set<std::string> exceptions = {
      "adamax",   // its norm counts eps in: u = max(β₂ u, |g| + eps)
      "adagrad",  // its sum begins at initial_accumulator_value
      "rprop",    // its step size begins at lr
      "asgd",     // its moment is the average of the weights
  };
  for_each_arithmetic_case([&]<class Rule>(const Case<Rule>& c) {
    auto options = c.options;
    Rule::Options::fields(options, [](const Field& field, auto& value) {
      if (field.name == std::string("weight_decay") || field.name == std::string("lambd")) value = {};
    });
    bool changed = false;
    for (float value : {1.5f, -3e-7f, 0.f, 1e20f}) {
      Scalar w(value), moments[kMaxMoments] = {Scalar(0.f), Scalar(0.f), Scalar(0.f), Scalar(0.f)};
      for (const auto& step : steps_of<Rule>(options)) Rule::update(w, Scalar(0.f), moments, step);
      EXPECT_TRUE(same_number(w.x, value)) << c.name << ": " << value << " became " << w.x;
      for (Scalar m : moments) changed = changed || bits_of(m.x) != 0;
    }
    EXPECT_EQ(changed, exceptions.contains(Rule::kName) && c.name != std::string("adagrad, defaults")) << c.name;
  });
}

// Moments that a checkpoint of another implementation, taken before the first update, has filled already.
TEST(FirstUpdate, DoesNotReadWhatItSetsItself) {
  auto same_with = [&]<class Rule>(const typename Rule::Options& options, int moment, float held) {
    auto first = steps_of<Rule>(options, 1)[0];
    Scalar a(0.5f), b = a, at_zero[kMaxMoments], at_held[kMaxMoments];
    for (int k = 0; k < kMaxMoments; ++k) at_zero[k] = at_held[k] = Scalar(0.f);
    at_held[moment] = Scalar(held);
    Rule::update(a, Scalar(0.25f), at_zero, first);
    Rule::update(b, Scalar(0.25f), at_held, first);
    bool same = same_number(a.x, b.x);
    for (int k = 0; k < kMaxMoments; ++k)
      same = same && (same_number(at_zero[k].x, at_held[k].x) || k >= static_cast<int>(Rule::kMoments.size()));
    return same;
  };
  EXPECT_TRUE(same_with.operator()<rules::Rprop>({.lr = 0.1}, 1, 0.1f));
  EXPECT_TRUE(same_with.operator()<rules::Adagrad>({.initial_accumulator_value = 0.5}, 0, 0.5f));
  EXPECT_TRUE(same_with.operator()<rules::Adan>({}, 3, -0.25f));
  EXPECT_TRUE(same_with.operator()<rules::Adopt>({}, 1, 7.f));
  EXPECT_TRUE(same_with.operator()<rules::Asgd>({}, 0, 0.5f));
  EXPECT_TRUE(same_with.operator()<rules::SgdMomentum>({.momentum = 0.9}, 0, 7.f));
}

// NaN in a gradient goes where torch.optim or the authors let it: to the weight, or where only a sign is used, to a
// moment. The first update of ADOPT and Sophia's Hessian do not touch the weight.
TEST(NaNGradient, ReachesTheWeightOrAMoment) {
  const std::set<std::string> only_signs = {"rprop", "lion", "signum", "sophia_hessian"};
  for_each_arithmetic_case([&]<class Rule>(const Case<Rule>& c) {
    Scalar w(0.5f), moments[kMaxMoments] = {Scalar(0.f), Scalar(0.f), Scalar(0.f), Scalar(0.f)};
    auto steps = steps_of<Rule>(c.options, 2);
    Rule::update(w, Scalar(0.1f), moments, steps[0]);
    Rule::update(w, Scalar(std::nanf("")), moments, steps[1]);
    bool in_a_moment = false;
    for (Scalar m : moments) in_a_moment = in_a_moment || std::isnan(m.x);
    EXPECT_TRUE(std::isnan(w.x) || in_a_moment) << c.name;
    EXPECT_EQ(std::isnan(w.x), !only_signs.contains(Rule::kName)) << c.name;
  });
}

}  // namespace
}  // namespace forge::testing
