#pragma once

#include <string>
#include <vector>

namespace forge {

// Loads a shared library of rules (kernels/register_optimizer.h) for as long as the process runs and returns the names
// of the optimizers that it has registered; of one that is loaded already, the same again. Throws Error where it cannot
// be loaded, registers nothing, or is refused by the registry.
std::vector<std::string> load_rule_library(const std::string& path);

}  // namespace forge
