#include "python/bindings/torch_rules.h"

#include <string>

#include "forge/base/error.h"

namespace py = pybind11;

namespace forge::python {
namespace {

py::object value_of(const py::dict& group, const char* key) {
  check(group.contains(key), "param_groups: a group lacks \"", key, "\"");
  return group[key];
}

// A number, or a tensor of one element: schedulers write either.
double as_number(const py::object& value, const char* key) {
  double x = PyFloat_AsDouble(value.ptr());
  if (x == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    fail("param_groups: \"", key, "\" is ", std::string(py::str(value)), ", expected a number");
  }
  return x;
}

double number(const py::dict& group, const char* key) { return as_number(value_of(group, key), key); }

bool flag(const py::dict& group, const char* key) { return group.contains(key) && group[key].cast<py::bool_>(); }

void refuse(const py::dict& group, const char* who, std::initializer_list<const char*> keys) {
  for (const char* key : keys)
    check(!flag(group, key), who, ": ", key, "=True is not supported; leave it at its default");
}

RuleStep prepare_adamw(const py::dict& group, std::int64_t steps_done) {
  refuse(group, "AdamW", {"amsgrad", "capturable", "differentiable"});
  py::sequence betas = value_of(group, "betas");
  check(betas.size() == 2, "param_groups: \"betas\" has ", betas.size(), " values, expected 2");
  AdamWOptions options{.lr = number(group, "lr"),
                       .beta1 = as_number(betas[0], "betas"),
                       .beta2 = as_number(betas[1], "betas"),
                       .eps = number(group, "eps"),
                       .weight_decay = number(group, "weight_decay"),
                       .maximize = flag(group, "maximize")};
  return rules::AdamW::prepare(options, steps_done + 1);
}

RuleStep prepare_sgd(const py::dict& group, std::int64_t steps_done) {
  refuse(group, "SGD", {"differentiable"});
  SgdOptions options{.lr = number(group, "lr"),
                     .momentum = number(group, "momentum"),
                     .dampening = number(group, "dampening"),
                     .weight_decay = number(group, "weight_decay"),
                     .nesterov = flag(group, "nesterov"),
                     .maximize = flag(group, "maximize")};
  if (options.momentum == 0) return rules::Sgd::prepare(options);
  return rules::SgdMomentum::prepare(options, steps_done + 1);
}

}  // namespace

const TorchRule& torch_rule(const std::string& name) {
  static const TorchRule kRules[] = {
      {"AdamW", {"exp_avg", "exp_avg_sq"}, true, prepare_adamw},
      {"SGD", {"momentum_buffer"}, false, prepare_sgd},
  };
  for (const TorchRule& rule : kRules)
    if (name == rule.name) return rule;
  fail("there is no rule ", name);
}

}  // namespace forge::python
