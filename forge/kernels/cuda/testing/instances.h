#pragma once

#include <type_traits>
#include <vector>

#include "forge/kernels/cuda/instances.h"
#include "forge/kernels/testing/rule_cases.h"
#include "forge/kernels/testing/weight.h"

namespace forge::testing {

// What has a fused kernel, with the constants of an update.
struct Instance {
  RuleStep rule;
  Storage storage;
};
struct Collect {
  std::vector<Instance>& all;
  template <class Rule, Format kWeight, Format kState>
  void operator()() const {
    typename Rule::Options options;
    if constexpr (std::is_same_v<Rule, rules::SgdMomentum>) options.momentum = 0.9;
    all.push_back({step_of<Rule>(options, 2), {kWeight, kState}});
  }
};
inline std::vector<Instance> instances() {
  std::vector<Instance> all;
  cuda::for_each_fused(Collect{all});
  return all;
}
inline std::vector<Instance> instances_on_hopper() {
  std::vector<Instance> all;
  cuda::for_each_fused_on_hopper(Collect{all});
  return all;
}

}  // namespace forge::testing
