#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "forge/base/scalar.h"
#include "forge/rules/list.h"
#include "forge/rules/testing/bounds.h"
#include "forge/rules/testing/cases.h"
#include "forge/rules/testing/distance.h"

// The comparison of closeness_test.cpp has the power to see a mistake: each of these, in at least one case.
namespace forge::testing {
// A mistake in reading the options or the progress, in the constants, or in the update.
template <class Rule, class F>
struct OptionsMistaken : Rule {
  static typename Rule::Step prepare(typename Rule::Options o, Progress p) {
    F{}(o, p);
    return Rule::prepare(o, p);
  }
};
template <class Rule, class F>
struct StepMistaken : Rule {
  static typename Rule::Step prepare(const typename Rule::Options& o, const Progress& p) {
    typename Rule::Step s = Rule::prepare(o, p);
    F{}(s, o, static_cast<double>(p.step));
    return s;
  }
};
template <class Rule, class F>
struct UpdateMistaken : Rule {
  static void update(Scalar& w, Scalar g, Scalar* m, const typename Rule::Step& s) { F{}(w, g, m, s); }
};

inline std::map<std::string, int>& mistakes_seen() {
  static std::map<std::string, int> seen;
  return seen;
}

// Collects the mistakes of a rule, each seen as base/testing/closeness.h measures.
template <class Rule, class Closeness>
struct MistakesSeenBy {
  template <class F>
  MistakesSeenBy options(const char* what, F) {
    return expect<OptionsMistaken<Rule, F>>(what);
  }
  template <class F>
  MistakesSeenBy step(const char* what, F) {
    return expect<StepMistaken<Rule, F>>(what);
  }
  template <class F>
  MistakesSeenBy update(const char* what, F) {
    return expect<UpdateMistaken<Rule, F>>(what);
  }

 private:
  template <class Mutant>
  MistakesSeenBy expect(const char* what) {
    bool caught = false;
    for_each_arithmetic_case([&]<class Other>(const Case<Other>& c) {
      if constexpr (std::is_same_v<Rule, Other>) {
        double d = distance<Mutant>(c.options, Closeness{.weights = 200});
        caught = caught || !(d <= bound_of(Rule::kName).units_of_tiny_weights);
      }
    });
    EXPECT_TRUE(caught) << Rule::kName << ": " << what << ", and nothing is seen";
    ++mistakes_seen()[Rule::kName];
    return *this;
  }
};

// Mistakes that several rules can have.
inline const auto off_by_one = [](auto&, Progress& p) { ++p.step; };
inline const auto betas_swapped = [](auto& o, Progress&) { std::swap(o.beta1, o.beta2); };
inline const auto maximize_ignored = [](auto& o, Progress&) { o.maximize = false; };
inline const auto other_kind_of_decay = [](auto& o, Progress&) {
  o.decoupled_weight_decay = !o.decoupled_weight_decay;
};
inline const auto eps_corrected = [](auto& s, const auto& o, double t) {
  s.eps *= static_cast<float>(std::sqrt(1 - std::pow(o.beta2, t)));
};
inline const Scalar zero(0.f);

// Each rule of the list from First up to, not with, End has two mutants.
template <class First, class End>
void expect_two_mutants_each() {
  bool within = false;
  RuleList::for_each([&]<class Rule>() {
    within = (within || std::is_same_v<Rule, First>)&&!std::is_same_v<Rule, End>;
    if (is_pass<Rule>()) return;  // passes_test.cpp has them
    EXPECT_TRUE(!within || mistakes_seen()[Rule::kName] >= 2) << Rule::kName << " needs at least two mutants";
  });
}

}  // namespace forge::testing
