#include "python/bindings/hosted_optimizer.h"

#include <ATen/ops/scalar_tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <utility>
#include <vector>

#include "forge/torch/optimizer_impl.h"
#include "python/bindings/torch_rules.h"

namespace py = pybind11;

namespace forge::python {
namespace {

bool is_dtensor(const py::object& t) { return py::hasattr(t, "to_local"); }

// The memory of a tensor on this rank.
at::Tensor local(const py::object& t) { return (is_dtensor(t) ? t.attr("to_local")() : t).cast<at::Tensor>(); }

}  // namespace

struct HostedImpl final : Optimizer::Impl {
  struct Entry {
    py::object parameter;
    py::dict group;
    bool distributed;
    std::vector<py::object> new_moments;  // made by this update, not handed to the host yet
  };

  HostedImpl(py::handle h, const TorchRule& r, OptimizerOptions o)
      : Impl(std::move(o), /*handles=*/true), host(h), rule(r) {}
  ~HostedImpl() override {
    py::gil_scoped_acquire lock;
    entries.clear();
  }

  void add(const py::object& parameter, const py::dict& group) {
    bool distributed = is_dtensor(parameter);
    if (distributed) {
      check(options.schedule == Schedule::at_step,
            "a DTensor parameter (FSDP2) is updated from its reduced gradient, so not in backward; use "
            "schedule=\"at_step\"");
      records.push_back(nullptr);
      state.push_back({local(parameter), {}, 0});
    } else {
      hold(parameter.cast<at::Tensor>());
    }
    entries.push_back({parameter, group, distributed, {}});
  }

  // None where the host has no state for it.
  py::object host_state(std::size_t i) const {
    py::dict states = host.attr("state");
    py::handle found = PyDict_GetItemWithError(states.ptr(), entries[i].parameter.ptr());
    return py::reinterpret_borrow<py::object>(found ? found : py::handle(Py_None));
  }

  RuleStep next_rule(std::size_t i) const override {
    py::gil_scoped_acquire lock;
    return rule.prepare(entries[i].group, state[i].step);
  }

  void load(std::size_t i) override {
    py::gil_scoped_acquire lock;
    ParameterState& s = state[i];
    s.moments.clear();
    s.step = 0;
    entries[i].new_moments.clear();
    py::object of_host = host_state(i);
    if (of_host.is_none()) return;
    for (const char* key : rule.moments) {
      py::object moment = of_host.attr("get")(key);
      if (moment.is_none()) break;
      s.moments.push_back(usable_moment(i, key, moment, of_host));
    }
    if (!rule.counts_steps)
      s.step = s.moments.empty() ? 0 : 1;
    else if (py::object step = of_host.attr("get")("step"); !step.is_none())
      s.step = static_cast<std::int64_t>(PyFloat_AsDouble(step.ptr()));
  }

  // The host's moment, or where kernels cannot use it as it is, a copy that replaces it.
  at::Tensor usable_moment(std::size_t i, const char* key, const py::object& moment, const py::object& of_host) {
    const at::Tensor& parameter = state[i].parameter;
    at::Tensor t = local(moment);
    check(t.sizes() == parameter.sizes(), "state: \"", key, "\" is ", t.sizes(), " for a parameter of shape ",
          parameter.sizes());
    auto dtype = options.state_dtype.value_or(is_stored(t.scalar_type()) ? t.scalar_type() : at::kFloat);
    at::Tensor usable = in_layout_of(parameter, t.to(dtype));
    if (usable.is_same(t)) return t;
    check(!entries[i].distributed, "state: \"", key, "\" of a DTensor parameter is ", t.scalar_type(), ", expected ",
          dtype);
    of_host[key] = usable;
    return usable;
  }

  at::Tensor new_moment(std::size_t i) override {
    py::gil_scoped_acquire lock;
    Entry& e = entries[i];
    py::object moment;
    if (e.distributed) {
      py::object zeros_like = py::module_::import("torch").attr("zeros_like");
      auto dtype = options.state_dtype.value_or(state[i].parameter.scalar_type());
      moment = zeros_like(e.parameter.attr("detach")(), py::arg("dtype") = dtype);
    } else {
      moment = py::cast(Impl::new_moment(i));
    }
    return local(e.new_moments.emplace_back(std::move(moment)));
  }

  void store(std::size_t i) override {
    py::gil_scoped_acquire lock;
    Entry& e = entries[i];
    py::object of_host = host.attr("state")[e.parameter];
    std::size_t known = state[i].moments.size() - e.new_moments.size();
    if (rule.counts_steps) store_step(of_host, state[i].step);
    for (std::size_t k = 0; k < e.new_moments.size(); ++k) of_host[rule.moments[known + k]] = e.new_moments[k];
    e.new_moments.clear();
  }

  static void store_step(const py::object& of_host, std::int64_t step) {
    py::object there = of_host.attr("get")("step");
    if (THPVariable_Check(there.ptr()))
      there.cast<at::Tensor>().fill_(step);
    else
      of_host["step"] = at::scalar_tensor(step, at::kFloat);
  }

  WholeGradient gradient_of(std::size_t i) override {
    const Entry& e = entries[i];
    if (!e.distributed) return Impl::gradient_of(i);
    py::gil_scoped_acquire lock;
    state[i].parameter = local(e.parameter);
    py::object grad = e.parameter.attr("grad");
    return {state[i].parameter, grad.is_none() ? at::Tensor() : local(grad)};
  }

  py::handle host;
  const TorchRule& rule;
  std::vector<Entry> entries;
};

HostedOptimizer::HostedOptimizer(py::handle host, const std::string& rule, OptimizerOptions options)
    : Optimizer(std::make_unique<HostedImpl>(host, torch_rule(rule), std::move(options))) {}

void HostedOptimizer::add(const py::object& parameter, const py::dict& group) {
  static_cast<HostedImpl&>(*impl_).add(parameter, group);
}

void HostedOptimizer::check_group(const py::dict& group) const {
  static_cast<HostedImpl&>(*impl_).rule.prepare(group, 0);
}

const std::map<std::string, std::int64_t>& HostedOptimizer::collapses() const { return impl_->ledger->collapses; }

}  // namespace forge::python
