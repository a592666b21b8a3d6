#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "forge/torch/optimizer.h"

namespace forge {

// Options of a rule by name, for programs that take them from their user; flags are 0 or 1. What is not there has its
// default.
using RuleValues = std::map<std::string, double>;

// An optimizer of the registry (rules/registry.h) by its name, in any case: "AdamW", "adamw". Throws Error with what
// there is where the name or an option is unknown, and for what the optimizer itself refuses.
std::unique_ptr<GroupedOptimizer> make_optimizer(const std::string& name, std::vector<ParamGroup<RuleValues>> groups,
                                                 OptimizerOptions options);

// The rule that the options choose, at one update, and where the next one stands: what kernels take, without an
// optimizer.
RuleStep prepare_rule(const std::string& name, const RuleValues& values, const Progress& progress);
Progress next_progress(const std::string& name, const RuleValues& values, const Progress& progress);

}  // namespace forge
