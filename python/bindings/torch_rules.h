#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "forge/rules/registry.h"

namespace forge::python {

// By the name of an optimizer of the registry, or "SophiaHessian", which updates only SophiaG's "hessian".
const OptimizerInfo& torch_rule(const std::string& name);

// The options of a rule in a dict of param_groups, with the keys of torch.optim or of the rule's authors. Throws Error
// where one is missing, is no number or asks for what is not there.
std::vector<double> values_of(const OptimizerInfo& rule, const pybind11::dict& group);

// The options of an optimizer as its C++ struct has them: a list of (name, tuple or None, place, default).
pybind11::list rule_options(const std::string& name);
pybind11::list rule_names();

}  // namespace forge::python
