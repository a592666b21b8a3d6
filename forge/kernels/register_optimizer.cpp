#include "forge/kernels/register_optimizer.h"

namespace forge {

bool register_optimizer(const OptimizerInfo& optimizer, std::span<const RuleLoops> loops,
                        std::uint32_t layout) noexcept {
  if (!add_optimizer(optimizer, layout == kRuleLoopLayout ? kRuleLayout : ~kRuleLayout)) return false;
  for (std::size_t k = 0; k < loops.size(); ++k) add_rule_loops(*optimizer.rules[k], loops[k]);
  return true;
}

}  // namespace forge
