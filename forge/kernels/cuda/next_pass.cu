#include "forge/kernels/cuda/next_pass.cuh"

#include "forge/base/error.h"
#include "forge/kernels/cuda/launch.h"

namespace forge::cuda {

void next_pass(void* constants, const RuleStep& pass, const double* sums, std::int64_t out, std::int64_t in,
               const Launch& launch) {
  bool known = false;
  RuleList::for_each([&]<class Rule>() {
    if constexpr (has_next_pass<Rule>() && PassOf<Rule>::kSums > 0) {
      if (known || pass.rule().id != kRuleInfo<Rule>.id) return;
      known = true;
      auto* next = static_cast<typename Rule::Next::Step*>(constants);
      launch_kernel(next_constants<Rule>, {1, 1, 1}, 1, 0, launch.stream,
                    NextArguments<Rule>{*pass.get<Rule>(), sums, out, in, next, launch.numbers});
    }
  });
  check(known, "next_pass: ", pass.name(), " is no pass of the list that sums for another");
}

}  // namespace forge::cuda
