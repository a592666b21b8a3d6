#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <string>

#include "forge/torch/optimizer.h"

namespace forge::python {

struct HostedImpl;

// The engine of a Python torch.optim.Optimizer, its host: param_groups and state are the host's, looked up at every
// update, so that schedulers, checkpoints and users change them as they are used to. The host owns the engine and
// outlives it. Calls hold the interpreter's lock, but those of Optimizer, which wait for the lock of the gradients.
class HostedOptimizer final : public Optimizer {
 public:
  // rule: a name of torch_rules.h.
  HostedOptimizer(pybind11::handle host, const std::string& rule, OptimizerOptions options);

  // A parameter and the group (a dict) whose values it follows. A DTensor is updated by its local part, from its
  // ordinary gradient. Throws Error for what Optimizer refuses; a parameter may be frozen.
  // name: the parameter's, which stochastic rounding is keyed by. embedding: its moments are not kept in 8 bits.
  void add(const pybind11::object& parameter, const pybind11::dict& group, const std::string& name, bool embedding);
  // True where the host's param_groups are, by identity, those that were added. Where they are not: begin_following(),
  // add() for all, and finish_following() or, where one was refused, cancel_following(), which leaves all as it was. A
  // parameter that has stayed keeps its gradient and its counts; one that has gone gets what it has recorded in
  // backward as an ordinary .grad.
  bool follows() const;
  void begin_following();
  void finish_following();
  void cancel_following();
  // Throws Error where the host's state is none that an update could start from.
  void check_state();
  // What rounding did is counted anew.
  void forget_rounding();
  // Every value of a group that the rule reads is checked.
  void check_group(const pybind11::dict& group) const;
  // Once all parameters are there: a format that none of them can have is refused.
  void check_formats() const;
  // A step by another rule (torch_rules.h) on the same state.
  void step_by(const std::string& rule);
  // A step in which all gradients are multiplied by a factor, one number on any device; they themselves stay as they
  // are.
  void step_scaled(const at::Tensor& factor);

  // How often terms were multiplied out, by reason.
  std::map<std::string, std::int64_t> collapses() const;
  // Whether ordinary_gradients() has any, without waiting for the gradients' lock.
  bool has_ordinary_gradients() const;
};

}  // namespace forge::python
