#pragma once

#include <algorithm>
#include <iterator>
#include <variant>

#include "forge/rules/adamw.h"
#include "forge/rules/sgd.h"

namespace forge {

// The one list of rules: tables of kernels, names and tests derive from it.
template <class... Rule>
struct RuleListOf {
  static constexpr int kSize = sizeof...(Rule);
  static constexpr const char* kNames[] = {Rule::kName...};
  static constexpr int kMoments[] = {Rule::kMoments...};
  using Step = std::variant<typename Rule::Step...>;
  // Calls f.template operator()<Rule>() for each rule, in order.
  template <class F>
  static void for_each(F&& f) {
    (f.template operator()<Rule>(), ...);
  }
};

using RuleList = RuleListOf<rules::Sgd, rules::SgdMomentum, rules::AdamW>;

// A rule with the constants of one step. index() is its place in the list.
using RuleStep = RuleList::Step;

// The most moments a rule of the list keeps; a kernel's arrays are this long.
constexpr int kMaxMoments = *std::max_element(std::begin(RuleList::kMoments), std::end(RuleList::kMoments));

inline int moments_of(const RuleStep& step) { return RuleList::kMoments[step.index()]; }
inline const char* name_of(const RuleStep& step) { return RuleList::kNames[step.index()]; }

}  // namespace forge
