// Contract 8: a rule's update is within a few units of its formula in float64, given the same fp32 gradient and state.
#include <gtest/gtest.h>

#include <cmath>
#include <type_traits>

#include "forge/base/scalar.h"
#include "forge/base/testing/closeness.h"
#include "forge/rules/list.h"
#include "forge/rules/testing/bounds.h"
#include "forge/rules/testing/cases.h"
#include "forge/rules/testing/distance.h"

namespace forge::testing {
namespace {

TEST(Closeness, OfEveryRuleToItsFormula) {
  for_each_arithmetic_case([]<class Rule>(const Case<Rule>& c) {
    Bound bound = bound_of(Rule::kName);
    EXPECT_LE(distance<Rule>(c.options, Closeness{.low = -1}), bound.units) << c.name;
    EXPECT_LE(distance<Rule>(c.options, Closeness{.low = -6}), bound.units_of_tiny_weights) << c.name;
  });
}

TEST(Closeness, TheCasesHaveEveryRule) {
  RuleList::for_each([]<class Rule>() {
    int cases = 0;
    for_each_case([&]<class Other>(const Case<Other>&) { cases += std::is_same_v<Rule, Other>; });
    EXPECT_GE(cases, 1) << Rule::kName << " has no case";
  });
}

TEST(Closeness, ARuleThatGivesNaNIsNotClose) {
  struct NaNs : rules::AdamW {
    static void update(Scalar& w, Scalar, Scalar*, const Step&) { w = Scalar(std::nanf("")); }
  };
  EXPECT_TRUE(std::isnan(distance<NaNs>({}, Closeness{.weights = 3})));
}

}  // namespace
}  // namespace forge::testing
