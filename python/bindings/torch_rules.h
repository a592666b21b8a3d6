#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "forge/rules/list.h"

namespace forge::python {

// A rule whose options are a dict of param_groups, with the keys of torch.optim or of the rule's authors.
struct TorchRule {
  const char* name;
  bool counts_steps;  // the state has a "step"; without one, a moment that is there tells the first step
  // The constants of the update that `progress` is at, and where the one after it stands. Throw Error where a value is
  // missing, out of range or asks for what is not there.
  RuleStep (*prepare)(const pybind11::dict& group, const Progress& progress);
  Progress (*next)(const pybind11::dict& group, const Progress& progress);
};

// By the name of the optimizer in RuleList, or "SophiaHessian", which updates only SophiaG's "hessian".
const TorchRule& torch_rule(const std::string& name);

// The options of an optimizer as its C++ struct has them: a list of (name, tuple or None, place, default).
pybind11::list rule_options(const std::string& name);
pybind11::list rule_names();

}  // namespace forge::python
