#include "python/bindings/torch_rules.h"

#include <type_traits>
#include <vector>

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
template <class T>
void read(const py::dict& group, const Field& field, T& to) {
  const char* key = field.tuple ? field.tuple : field.name;
  if (!group.contains(key)) {
    check(!std::is_same_v<T, double>, "param_groups: a group lacks \"", key, "\"");
    return;
  }
  py::object value = group[key];
  if (field.tuple) {
    py::sequence all = value;
    check(static_cast<std::size_t>(field.place) < all.size(), "param_groups: \"", key, "\" has ", all.size(),
          " values, expected more");
    value = all[static_cast<std::size_t>(field.place)];
  }
  if (value.is_none()) return;
  if constexpr (std::is_same_v<T, bool>)
    to = py::bool_(value);
  else
    to = static_cast<T>(as_number(value, key));
}

template <class Options>
Options options_of(const py::dict& group) {
  for (const char* key : {"capturable", "differentiable"})
    check(!group.contains(key) || !py::bool_(group[key]), Options::kName, ": ", key,
          "=True is not supported; leave it at its default");
  Options options;
  Options::fields(options, [&](const Field& field, auto& value) { read(group, field, value); });
  return options;
}

template <class O>
TorchRule rule_of() {
  using Options = typename O::Options;
  return {Options::kName, counts_steps<Options>(),
          [](const py::dict& group, const Progress& p) { return O::prepare(options_of<Options>(group), p); },
          [](const py::dict& group, const Progress& p) { return O::next(options_of<Options>(group), p); }};
}

std::vector<TorchRule> all_rules() {
  std::vector<TorchRule> rules;
  RuleList::for_each_optimizer([&]<class O>() { rules.push_back(rule_of<O>()); });
  rules.push_back({"SophiaHessian", true,
                   [](const py::dict& group, const Progress& p) {
                     using Rule = forge::rules::SophiaHessian;
                     return RuleStep::of<Rule>(Rule::prepare(options_of<SophiaGOptions>(group), p));
                   },
                   [](const py::dict&, const Progress& p) { return p; }});
  return rules;
}

}  // namespace

const TorchRule& torch_rule(const std::string& name) {
  static const std::vector<TorchRule> kRules = all_rules();
  for (const TorchRule& rule : kRules)
    if (name == rule.name) return rule;
  fail("there is no rule ", name);
}

py::list rule_names() {
  py::list names;
  RuleList::for_each_optimizer([&]<class O>() { names.append(O::Options::kName); });
  return names;
}

py::list rule_options(const std::string& name) {
  py::list all;
  RuleList::for_each_optimizer([&]<class O>() {
    if (name != O::Options::kName) return;
    typename O::Options defaults;
    O::Options::fields(defaults, [&](const Field& f, auto& value) {
      all.append(py::make_tuple(f.name, f.tuple ? py::object(py::str(f.tuple)) : py::none(), f.place, value));
    });
  });
  return all;
}

}  // namespace forge::python
