#include "python/bindings/torch_rules.h"

#include <cstdint>
#include <span>

#include "forge/base/error.h"

namespace py = pybind11;

namespace forge::python {
namespace {

// A number, or a tensor of one element: schedulers write either.
double as_number(const py::object& value, const char* key) {
  double x = PyFloat_AsDouble(value.ptr());
  if (x == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    fail("param_groups: \"", key, "\" is ", std::string(py::str(value)), ", expected a number");
  }
  return x;
}

// A flag or a count that a group lacks, and anything that is None, is at its default.
double read(const py::dict& group, const OptionInfo& option) {
  const Field& field = option.field;
  const char* key = field.tuple ? field.tuple : field.name;
  if (!group.contains(key)) {
    check(option.kind != OptionKind::number, "param_groups: a group lacks \"", key, "\"");
    return option.initial;
  }
  py::object value = group[key];
  if (field.tuple) {
    py::sequence all = value;
    check(static_cast<std::size_t>(field.place) < all.size(), "param_groups: \"", key, "\" has ", all.size(),
          " values, expected more");
    value = all[static_cast<std::size_t>(field.place)];
  }
  if (value.is_none()) return option.initial;
  if (option.kind == OptionKind::flag) return static_cast<bool>(py::bool_(value));
  return as_number(value, key);
}

// SophiaG's other rule, which no option chooses.
OptimizerInfo sophia_hessian() {
  OptimizerInfo info = find_optimizer(SophiaGOptions::kName);
  info.name = "SophiaHessian";
  info.prepare = [](std::span<const double> values, const Progress& p) {
    using Rule = forge::rules::SophiaHessian;
    return RuleStep::of<Rule>(Rule::prepare(options_from<SophiaGOptions>(values), p));
  };
  info.next = [](std::span<const double>, const Progress& p) { return p; };
  return info;
}

py::object as_python(const OptionInfo& option) {
  if (option.kind == OptionKind::flag) return py::bool_(option.initial != 0);
  if (option.kind == OptionKind::count) return py::int_(static_cast<std::int64_t>(option.initial));
  return py::float_(option.initial);
}

}  // namespace

const OptimizerInfo& torch_rule(const std::string& name) {
  static const OptimizerInfo kSophiaHessian = sophia_hessian();
  return name == kSophiaHessian.name ? kSophiaHessian : find_optimizer(name);
}

std::vector<double> values_of(const OptimizerInfo& rule, const py::dict& group) {
  for (const char* key : {"capturable", "differentiable"})
    check(!group.contains(key) || !py::bool_(group[key]), rule.name, ": ", key,
          "=True is not supported; leave it at its default");
  std::vector<double> values;
  for (const OptionInfo& option : rule.options) values.push_back(read(group, option));
  return values;
}

py::list rule_names() {
  py::list names;
  for (const OptimizerInfo* optimizer : optimizers()) names.append(optimizer->name);
  return names;
}

py::list rule_options(const std::string& name) {
  py::list all;
  for (const OptionInfo& option : find_optimizer(name).options) {
    const Field& f = option.field;
    all.append(py::make_tuple(f.name, f.tuple ? py::object(py::str(f.tuple)) : py::none(), f.place, as_python(option)));
  }
  return all;
}

}  // namespace forge::python
