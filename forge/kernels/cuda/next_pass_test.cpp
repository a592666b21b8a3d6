#include <gtest/gtest.h>

#include <limits>

#include "forge/base/testing/refusal.h"
#include "forge/kernels/cuda/testing/emulated.h"

namespace forge {
namespace {

using namespace forge::testing;

// From the pass's constants in the host's memory and in the device's.
template <class Rule>
void expect_next_of_the_host(const RuleStep& pass, const Sums& sums) {
  for (bool on_device : {false, true}) {
    typename Rule::Next::Step found;
    RuleStep given = on_device ? RuleStep::of<Rule>({}) : pass;
    const cuda::OnDevice numbers = {.constants = on_device ? pass.constants() : nullptr};
    emulate(1,
            [&] { cuda::next_pass(&found, given, sums.of_squares.data(), sums.out, sums.in, {.numbers = numbers}); });
    EXPECT_EQ(RuleStep::of<typename Rule::Next>(found), *pass.next(sums)) << pass.name();
  }
}

TEST(NextPass, HasTheConstantsOfTheHost) {
  const Sums sums = {.of_squares = {4.7, 2.9e-3}, .out = 5, .in = 7};
  const Sums large = {.of_squares = {std::numeric_limits<double>::infinity(), 1e300}, .out = 1, .in = 9};
  int depend_on_sums = 0;
  RuleList::for_each([&]<class Rule>() {
    if constexpr (PassOf<Rule>::kSums > 0)
      for (const RuleCase& rule : rule_cases()) {
        const RuleStep pass = rule.prepare(2);
        if (pass.rule().id != kRuleInfo<Rule>.id) continue;
        SCOPED_TRACE(rule.name);
        expect_next_of_the_host<Rule>(pass, sums);
        expect_next_of_the_host<Rule>(pass, large);
        depend_on_sums += *pass.next(sums) != *pass.next(large);
      }
  });
  EXPECT_GE(depend_on_sums, 7);
}

TEST(NextPass, RefusesAPassThatSumsNothing) {
  double sums[kMaxSums] = {};
  float constants[24];
  auto refused = [&](const RuleStep& pass) {
    return refuses([&] { cuda::next_pass(constants, pass, sums, 1, 1, {}); }, {pass.name(), "no pass of the list"});
  };
  EXPECT_TRUE(refused(step_of<rules::AdamW>({}, 1)));
  EXPECT_TRUE(refused(step_of<rules::MuonMomentum>({}, 1)));
}

}  // namespace
}  // namespace forge
