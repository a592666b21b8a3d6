#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "forge/rules/list.h"

namespace forge::python {

// How torch.optim spells a rule: the keys of its param_groups and of its state.
struct TorchRule {
  const char* name;
  std::vector<const char*> moments;  // keys of the state, in the rule's order
  bool counts_steps;                 // the state has a "step"; without one, a moment that is there tells the first step
  // The constants of the step after `steps_done`. Throws Error where a value is missing, out of range or asks for
  // what is not there.
  RuleStep (*prepare)(const pybind11::dict& group, std::int64_t steps_done);
};

const TorchRule& torch_rule(const std::string& name);

}  // namespace forge::python
