#include "python/bindings/hosted_optimizer.h"

#include <ATen/ops/scalar_tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "forge/base/hash.h"
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
    std::size_t place;  // in the group's "params"
    bool distributed;
    std::vector<std::pair<std::string, py::object>> made;  // by this update, not handed to the host yet
    const RuleInfo* info = nullptr;                        // of the rule that the group chooses, as of load()
  };

  HostedImpl(py::handle h, const OptimizerInfo& r, OptimizerOptions o)
      : Impl(std::move(o), /*handles=*/true), host(h), weak_host(h), rule(&r) {}
  ~HostedImpl() override {
    py::gil_scoped_acquire lock;
    {
      py::gil_scoped_release nobody_waits_with_it;
      retire();
    }
    entries.clear();
    before.reset();
    weak_host = {};
  }

  // The host may be collected, or its last reference go in another thread, while backward updates.
  std::shared_ptr<const void> in_use() const override {
    py::gil_scoped_acquire lock;
    py::object alive = weak_host();
    if (alive.is_none()) return nullptr;
    return {alive.release().ptr(), [](PyObject* object) {
              py::gil_scoped_acquire again;
              Py_DECREF(object);
            }};
  }

  // ---- Following the host's groups: all parameters are added anew; those that are known go on as they were ----

  // What this knew before.
  struct Held {
    std::vector<Entry> entries;
    std::vector<ParameterState> state;
    std::vector<std::optional<Format>> state_formats;
    std::vector<bool> embeddings;
    std::vector<std::uint32_t> names;
    std::vector<std::shared_ptr<Record>> records;
  };

  void exchange(Held& held) {
    std::swap(entries, held.entries);
    std::swap(state, held.state);
    std::swap(state_formats, held.state_formats);
    std::swap(embeddings, held.embeddings);
    std::swap(names, held.names);
    std::swap(records, held.records);
  }
  void begin_following() { exchange(before.emplace()); }
  void cancel_following() {
    exchange(*before);
    before.reset();
    py::gil_scoped_release nobody_waits_with_it;
    serve();
  }
  void finish_following() {
    std::map<RoundedMatrix, RoundingCount> moved;
    for (const auto& [matrix, count] : rounding)
      if (auto now = place_of(entries, before->entries[matrix.parameter].parameter)) {
        RoundedMatrix there = matrix;
        there.parameter = *now;
        moved[there] = count;
      }
    rounding = std::move(moved);
    for (std::size_t i = 0; i < before->records.size(); ++i)
      if (!place_of(entries, before->entries[i].parameter)) let_go(before->records[i]);
    before.reset();
  }
  static void let_go(const std::shared_ptr<Record>& record) {
    if (!record) return;
    py::gil_scoped_release nobody_waits_with_it;
    record->release();
    record->retire();
  }

  static std::optional<std::size_t> place_of(const std::vector<Entry>& entries, const py::object& parameter) {
    auto found = std::ranges::find_if(entries, [&](const Entry& e) { return e.parameter.is(parameter); });
    if (found == entries.end()) return std::nullopt;
    return static_cast<std::size_t>(found - entries.begin());
  }
  std::shared_ptr<Record> known_record(const py::object& parameter) const {
    auto place = before ? place_of(before->entries, parameter) : std::nullopt;
    return place ? before->records[*place] : nullptr;
  }

  // True where the host's groups are those that were added, with these parameters in this order.
  bool follows() const {
    std::size_t i = 0;
    const Items groups(param_groups());
    for (PyObject* group : groups) {
      const Items params(params_of(group));
      for (PyObject* parameter : params) {
        bool same = i < entries.size() && entries[i].parameter.ptr() == parameter && entries[i].group.ptr() == group;
        if (!same) return false;
        ++i;
      }
    }
    return i == entries.size();
  }

  // This is asked at each step, and in in_backward for each weight: by the interpreter's own functions, which count no
  // references.
  class Items {
   public:
    explicit Items(const py::object& sequence)
        : items_(py::reinterpret_steal<py::object>(PySequence_Fast(sequence.ptr(), "param_groups: expected a list"))) {
      if (!items_) throw py::error_already_set();
    }
    PyObject** begin() const { return PySequence_Fast_ITEMS(items_.ptr()); }
    PyObject** end() const { return begin() + PySequence_Fast_GET_SIZE(items_.ptr()); }
    std::size_t size() const { return static_cast<std::size_t>(end() - begin()); }

   private:
    py::object items_;
  };
  py::object param_groups() const {
    static PyObject* name = PyUnicode_InternFromString("param_groups");
    py::object groups = py::reinterpret_steal<py::object>(PyObject_GetAttr(host.ptr(), name));
    if (!groups) throw py::error_already_set();
    return groups;
  }
  static py::object params_of(PyObject* group) {
    static PyObject* name = PyUnicode_InternFromString("params");
    py::object params = py::reinterpret_steal<py::object>(PyObject_GetItem(group, name));
    if (!params) throw py::error_already_set();
    return params;
  }

  // In backward, before the host says that its groups have changed.
  bool holds(std::size_t i) const override {
    py::gil_scoped_acquire lock;
    const Entry& e = entries[i];
    const Items groups(param_groups()), params(params_of(e.group.ptr()));
    bool in_group = e.place < params.size() && params.begin()[e.place] == e.parameter.ptr();
    return in_group && std::find(groups.begin(), groups.end(), e.group.ptr()) != groups.end();
  }

  // ---- Parameters ----

  void add(const py::object& parameter, const py::dict& group, const std::string& name, bool embedding) {
    bool distributed = is_dtensor(parameter);
    check_kind(parameter);
    std::size_t place = entries.empty() || !entries.back().group.is(group) ? 0 : entries.back().place + 1;
    const RuleInfo& first = rule->prepare(values_of(*rule, group), {}).rule();
    std::optional<Format> format;
    if (group.contains("state_format") && !group["state_format"].is_none())
      format = format_of(group["state_format"].cast<std::string>());
    if (distributed) {
      check(first.next_pass == nullptr, rule->name,
            " needs sums over whole weights, and a DTensor parameter (FSDP2) is "
            "one rank's part; use DistributedDataParallel, or an optimizer that takes one pass");
      check_distributed(format);
      records.push_back(nullptr);
      state.push_back({.parameter = local(parameter), .low = {}, .moments = {}, .progress = {}});
      state_formats.push_back(format);
      names.push_back(fnv1a(name));
    } else {
      at::Tensor tensor = parameter.cast<at::Tensor>();
      std::shared_ptr<Record> known = known_record(parameter);
      py::gil_scoped_release nobody_waits_with_it;
      hold(tensor, name, format, first, known);
    }
    entries.push_back({parameter, group, place, distributed, {}, nullptr});
    embeddings.push_back(embedding);
  }

  // Tensors with a dispatch of their own have no memory that kernels know; a fake one has none at all, and none is
  // wanted.
  static void check_kind(const py::object& parameter) {
    if (!parameter.cast<at::Tensor>().key_set().has(c10::DispatchKey::Python) || is_dtensor(parameter)) return;
    py::object fake = py::module_::import("torch._subclasses.fake_tensor").attr("FakeTensor");
    check(py::isinstance(parameter, fake), "a parameter is a ", std::string(py::str(py::type::of(parameter))),
          ", a tensor with a dispatch of its own; give it to torch.optim, or use plain parameters");
  }

  void check_distributed(std::optional<Format> group_format) const {
    check(options.schedule == Schedule::at_step,
          "a DTensor parameter (FSDP2) is updated from its reduced gradient, so not in backward; use "
          "schedule=\"at_step\"");
    Format format = group_format.value_or(options.state_format.value_or(Format::fp32));
    check(!info_of(format).has_rest && options.weight_format == Format::bf16,
          "a DTensor parameter (FSDP2) is kept in fp32 or bf16, with moments of fp32 or bf16; leave weight_format out, "
          "and state_format ",
          name_of(format), " too");
  }

  // None where the host has no state for it.
  py::object host_state(std::size_t i) const {
    py::dict states = host.attr("state");
    py::handle found = PyDict_GetItemWithError(states.ptr(), entries[i].parameter.ptr());
    return py::reinterpret_borrow<py::object>(found ? found : py::handle(Py_None));
  }

  RuleStep next_rule(std::size_t i) const override {
    py::gil_scoped_acquire lock;
    return rule->prepare(values_of(*rule, entries[i].group), progress_of(*rule, state[i]));
  }
  bool is_training(std::size_t i) const {
    const py::dict& group = entries[i].group;
    return !group.contains("train_mode") || py::bool_(group["train_mode"]);
  }
  Progress next_progress(std::size_t i) const override {
    py::gil_scoped_acquire lock;
    return rule->next(values_of(*rule, entries[i].group), state[i].progress);
  }

  // The steps that SGD does not count matter where noise depends on them.
  bool keeps_step(std::size_t i) const {
    const auto& moments = state[i].moments;
    return rule->counts_steps || info_of(weight_format_of(i)).random_bits > 0 ||
           std::any_of(moments.begin(), moments.end(),
                       [](const StoredTensor& m) { return info_of(m.format).random_bits > 0; });
  }

  void load(std::size_t i) override {
    py::gil_scoped_acquire lock;
    check(is_training(i), "the weights are those of evaluation; call optimizer.train() before training");
    load_state(i);
  }
  void load_state(std::size_t i) {
    ParameterState& s = state[i];
    s.moments.clear();
    s.low = at::Tensor();
    s.progress = {};
    entries[i].made.clear();
    const RuleInfo& info = *(entries[i].info = &rule_for(i).rule());
    py::object of_host = host_state(i);
    if (of_host.is_none()) return;
    auto there = [&](const Moment& moment) { return !of_host.attr("get")(moment.key).is_none(); };
    std::size_t last = info.moments.size();
    while (last > 0 && !there(info.moments[last - 1])) --last;
    for (const Moment& moment : info.moments.first(last))
      s.moments.push_back(there(moment) ? usable_moment(i, moment, of_host.attr("get")(moment.key), of_host)
                                        : new_moment(i, moment));
    load_low(i, of_host);
    load_progress(i, info, of_host);
  }

  void load_low(std::size_t i, const py::object& of_host) {
    py::object low = of_host.attr("get")(kLowKey);
    if (low.is_none()) return;
    check(info_of(weight_format_of(i)).has_rest, "state: \"", kLowKey,
          "\" was saved with another weight_format; give the "
          "one that it was saved with or, to go on with the bf16 part alone, remove it from the state");
    at::Tensor t = low.cast<at::Tensor>();
    at::ScalarType type = scalar_type_of(info_of(weight_format_of(i)).rest);
    check(t.scalar_type() == type && t.sizes() == state[i].parameter.sizes(), "state: \"", kLowKey, "\" is ",
          t.scalar_type(), " of ", t.sizes(), ", expected ", type, " of ", state[i].parameter.sizes(),
          "; it was saved with another weight_format");
    state[i].low = in_layout_of(state[i].parameter, t);
  }

  void load_progress(std::size_t i, const RuleInfo& info, const py::object& of_host) {
    py::object step = of_host.attr("get")("step");
    if (step.is_none()) return;
    Progress& progress = state[i].progress;
    progress.step = static_cast<std::int64_t>(PyFloat_AsDouble(step.ptr())) + 1;
    if (progress.step == 1) return;
    for (std::size_t k = 0; k < info.scalars.size(); ++k) {
      py::object scalar = of_host.attr("get")(info.scalars[k]);
      check(!scalar.is_none(), "state: there is a \"step\" and no \"", info.scalars[k], "\"");
      progress.scalars[k] = PyFloat_AsDouble(scalar.ptr());
    }
  }

  // The host's moment, or where it is not in the format that is asked for, a copy that replaces it.
  StoredTensor usable_moment(std::size_t i, const Moment& moment, const py::object& value, const py::object& of_host) {
    const at::Tensor& parameter = state[i].parameter;
    at::Tensor t = local(value);
    std::vector<std::int64_t> sizes = sizes_of_moment(parameter, moment);
    check(t.sizes() == at::IntArrayRef(sizes), "state: \"", moment.key, "\" is ", t.sizes(),
          " for a parameter of shape ", parameter.sizes());
    if (moment.extent != Extent::element) {
      at::Tensor usable = t.to(at::kFloat).contiguous();
      if (!usable.is_same(t)) of_host[moment.key] = usable;
      return usable;
    }
    StoredTensor there = stored_moment(moment, t, of_host);
    Format format = wanted_format(i, there.format);
    if (format == Format::bf16_stochastic && there.format == Format::bf16) there.format = format;  // the same bits
    bool same_layout = in_layout_of(parameter, there.values).is_same(there.values);
    // Scales belong to rows of the memory: in another order, numbers have to be coded anew.
    StoredTensor numbers = same_layout || !there.rest.defined() ? there : in_format(there, Format::fp32, moment.sign);
    numbers.values = in_layout_of(parameter, numbers.values);
    StoredTensor usable = in_format(numbers, format, moment.sign);
    if (usable.values.is_same(t)) return usable;
    check(!entries[i].distributed, "state: \"", moment.key, "\" of a DTensor parameter is ", t.scalar_type(),
          ", expected ", scalar_type_of(info_of(format).values));
    of_host[moment.key] = usable.values;
    of_host.attr("pop")(scale_key(moment), py::none());
    if (usable.rest.defined()) of_host[scale_key(moment).c_str()] = usable.rest;
    return usable;
  }

  // What a checkpoint brought stays as it is where nothing else is asked for.
  Format wanted_format(std::size_t i, Format there) const {
    return state_formats[i] || options.state_format ? state_format_of(i) : there;
  }

  static std::string scale_key(const Moment& moment) { return std::string(moment.key) + "_scale"; }

  static StoredTensor stored_moment(const Moment& moment, const at::Tensor& t, const py::object& of_host) {
    if (is_stored(t.scalar_type())) return t;
    py::object scale = of_host.attr("get")(scale_key(moment));
    if (scale.is_none()) return t.to(at::kFloat);
    Format format = t.scalar_type() == at::kFloat8_e4m3fn ? Format::fp8 : Format::int8;
    at::Tensor rest = scale.cast<at::Tensor>();
    std::vector<std::int64_t> sizes = sizes_of_rest(t, format);
    check(rest.scalar_type() == at::kBFloat16 && rest.sizes() == at::IntArrayRef(sizes) && rest.is_contiguous(),
          "state: \"", scale_key(moment), "\" is ", rest.scalar_type(), " of ", rest.sizes(), ", expected BFloat16 of ",
          at::IntArrayRef(sizes));
    at::ScalarType type = values_type(format, moment.sign);
    check(t.scalar_type() == type, "state: \"", moment.key, "\" is ", t.scalar_type(), ", expected ", type);
    return {format, t, rest};
  }

  StoredTensor new_moment(std::size_t i, const Moment& moment) override {
    py::gil_scoped_acquire lock;
    Entry& e = entries[i];
    if (e.distributed) {
      py::object zeros_like = py::module_::import("torch").attr("zeros_like");
      at::ScalarType type = scalar_type_of(info_of(state_format_of(i)).values);
      py::object zeros = zeros_like(e.parameter.attr("detach")(), py::arg("dtype") = type);
      e.made.emplace_back(moment.key, zeros);
      return local(zeros);
    }
    StoredTensor zeros = Impl::new_moment(i, moment);
    e.made.emplace_back(moment.key, py::cast(zeros.values));
    if (zeros.rest.defined()) e.made.emplace_back(scale_key(moment), py::cast(zeros.rest));
    return zeros;
  }

  void store(std::size_t i) override {
    py::gil_scoped_acquire lock;
    Entry& e = entries[i];
    const ParameterState& s = state[i];
    // The user's own dict may have no default, and the weight has been updated already.
    py::object of_host = host.attr("state").attr("setdefault")(e.parameter, py::dict());
    if (keeps_step(i)) store_scalar(of_host, "step", static_cast<double>(s.progress.step - 1));
    std::span<const char* const> scalars = e.info->scalars;
    for (std::size_t k = 0; k < scalars.size(); ++k) store_scalar(of_host, scalars[k], s.progress.scalars[k]);
    if (s.low.defined()) of_host[kLowKey] = s.low;
    for (auto& [key, moment] : e.made) of_host[key.c_str()] = moment;
    e.made.clear();
  }

  // As torch.optim keeps it: a tensor of one fp32 number; of one double where fp32 would round it. On the CPU, where
  // reading it does not wait, also where a checkpoint brought it on a device.
  static void store_scalar(const py::object& of_host, const char* key, double value) {
    py::object there = of_host.attr("get")(key);
    bool exact = static_cast<double>(static_cast<float>(value)) == value;
    if (exact && THPVariable_Check(there.ptr()) && there.cast<at::Tensor>().is_cpu())
      there.cast<at::Tensor>().fill_(value);
    else
      of_host[key] = at::scalar_tensor(value, exact ? at::kFloat : at::kDouble);
  }

  WholeGradient gradient_of(std::size_t i) override {
    const Entry& e = entries[i];
    if (!e.distributed) return Impl::gradient_of(i);
    py::gil_scoped_acquire lock;
    state[i].parameter = local(e.parameter);
    py::object grad = e.parameter.attr("grad");
    return {state[i].parameter, grad.is_none() ? at::Tensor() : local(grad)};
  }

  static constexpr const char* kLowKey = "weight_low";

  py::handle host;  // owns this
  py::weakref weak_host;
  const OptimizerInfo* rule;
  std::vector<Entry> entries;
  std::optional<Held> before;
};

HostedOptimizer::HostedOptimizer(py::handle host, const std::string& rule, OptimizerOptions options)
    : Optimizer(std::make_unique<HostedImpl>(host, torch_rule(rule), std::move(options))) {}

void HostedOptimizer::add(const py::object& parameter, const py::dict& group, const std::string& name, bool embedding) {
  static_cast<HostedImpl&>(*impl_).add(parameter, group, name, embedding);
}

void HostedOptimizer::check_group(const py::dict& group) const {
  const OptimizerInfo& rule = *static_cast<HostedImpl&>(*impl_).rule;
  rule.prepare(values_of(rule, group), {});
}

void HostedOptimizer::check_formats() const { check_held(); }

bool HostedOptimizer::follows() const { return static_cast<HostedImpl&>(*impl_).follows(); }
void HostedOptimizer::begin_following() { static_cast<HostedImpl&>(*impl_).begin_following(); }
void HostedOptimizer::cancel_following() { static_cast<HostedImpl&>(*impl_).cancel_following(); }
void HostedOptimizer::finish_following() { static_cast<HostedImpl&>(*impl_).finish_following(); }

void HostedOptimizer::check_state() {
  auto& impl = static_cast<HostedImpl&>(*impl_);
  for (std::size_t i = 0; i < impl.entries.size(); ++i) impl.load_state(i);
}

void HostedOptimizer::forget_rounding() { impl_->rounding.clear(); }

void HostedOptimizer::step_by(const std::string& rule) {
  auto& impl = static_cast<HostedImpl&>(*impl_);
  const OptimizerInfo* usual = std::exchange(impl.rule, &torch_rule(rule));
  struct Restore {
    HostedImpl& impl;
    const OptimizerInfo* rule;
    ~Restore() { impl.rule = rule; }
  } restore{impl, usual};
  step();
}

void HostedOptimizer::step_scaled(const at::Tensor& factor) { impl_->step(factor); }

bool HostedOptimizer::has_ordinary_gradients() const { return impl_->ledger->has_ordinary; }

std::map<std::string, std::int64_t> HostedOptimizer::collapses() const {
  std::scoped_lock lock(impl_->ledger->gradients_in_use);
  return impl_->ledger->collapses;
}

}  // namespace forge::python
