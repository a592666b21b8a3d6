#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "forge/rules/list.h"
#include "forge/rules/testing/cases.h"

namespace forge::testing {

// The rule's update number t of a weight.
template <class Rule>
RuleStep step_of(const typename Rule::Options& options, std::int64_t t) {
  Progress progress;
  while (progress.step < t) progress = next_progress<Rule>(options, progress);
  return RuleStep::of<Rule>(prepare_pass<Rule>(options, progress));
}

struct RuleCase {
  std::string name;
  std::function<RuleStep(std::int64_t step)> prepare;
};

// At least one for each rule of the list (a test checks that).
inline const std::vector<RuleCase>& rule_cases() {
  static const std::vector<RuleCase> all = [] {
    std::vector<RuleCase> cases;
    for_each_case([&]<class Rule>(const Case<Rule>& c) {
      cases.push_back({c.name, [options = c.options](std::int64_t t) { return step_of<Rule>(options, t); }});
    });
    return cases;
  }();
  return all;
}

}  // namespace forge::testing
