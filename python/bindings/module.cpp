// forge_optim._C: the library's door for Python. Nothing is decided here.
#include <ATen/core/PythonFallbackKernel.h>
#include <ATen/ops/isfinite_ops.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "forge/base/error.h"
#include "forge/kernels/rule_library.h"
#include "forge/kernels/target.h"
#include "forge/torch/allocation.h"
#include "forge/torch/device_kernels.h"
#include "forge/torch/handle.h"
#include "forge/torch/record.h"
#include "forge/torch/stored_tensor.h"
#include "python/bindings/hosted_optimizer.h"
#include "python/bindings/torch_rules.h"

namespace py = pybind11;

namespace forge::python {
namespace {

// Of a handle's size and on its device. C++ that goes past the dispatcher, as some collectives do, gets an error where
// it writes, and not address 0; it may ask whether two tensors share memory.
c10::Storage storage_without_memory(const at::Tensor& like) {
  c10::Storage none(c10::Storage::use_byte_size_t{}, like.nbytes(), at::DataPtr(nullptr, like.device()),
                    c10::GetAllocator(like.device().type()), /*resizable=*/false);
  none.unsafeGetStorageImpl()->set_throw_on_mutable_data_ptr();
  return none;
}

// What a handle shows as its storage: reading it is an error as well.
c10::Storage unreadable_storage(const at::Tensor& handle) {
  c10::Storage none = storage_without_memory(handle);
  none.unsafeGetStorageImpl()->release_data_and_set_meta_custom_data_ptr_error_msg_(
      "a FactoredGrad is not multiplied out and has no memory of its own; take p.grad.dense() for a tensor that has");
  return none;
}

// What FactoredGrad.__new__ does, here because backward makes one for each weight: an object of that class of the
// shape, dtype and device of `like`, without memory, which has its Gradient as `_gradient`.
py::object make_handle(py::handle type, const std::shared_ptr<Gradient>& G, const at::Tensor& like) {
  auto keys = c10::DispatchKeySet(like.options().computeDispatchKey());
  auto handle = at::detail::make_tensor<c10::TensorImpl>(storage_without_memory(like), keys, like.dtype());
  handle.unsafeGetTensorImpl()->set_sizes_contiguous(like.sizes());
  handle.unsafeGetTensorImpl()->set_python_dispatch(true);
  auto object =
      py::reinterpret_steal<py::object>(THPVariable_Wrap(handle, reinterpret_cast<PyTypeObject*>(type.ptr())));
  if (!object) throw py::error_already_set();
  object.attr("_gradient") = G;
  return object;
}

// The handle, whose data has become a tensor's with memory, is an ordinary tensor to the dispatcher from now on.
void make_ordinary(const at::Tensor& handle) { handle.unsafeGetTensorImpl()->set_python_dispatch(false); }

// torch makes isfinite of other operations, of which abs() would have to be multiplied out, before a Python class hears
// of it. A handle's class hears of isfinite itself; for tensors of other classes this is torch's own fallback.
at::Tensor isfinite(c10::DispatchKeySet keys, const at::Tensor& t) {
  at::impl::MaybeSetTLSOnEntryGuard entry;
  auto next = gradient_behind(t) != nullptr
                  ? c10::DispatchKeySet(c10::DispatchKey::Python)
                  : keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::PythonTLSSnapshot);
  return at::_ops::isfinite::redispatch(next, t);
}

// Handles are objects of the Python class FactoredGrad.
class PythonHandles final : public GradientHandles {
 public:
  explicit PythonHandles(py::object type) : type_(std::move(type)) {}

  at::Tensor make(const std::shared_ptr<Gradient>& G, const at::Tensor& parameter) override {
    py::gil_scoped_acquire lock;
    return make_handle(type_, G, parameter).cast<at::Tensor>();
  }
  std::shared_ptr<Gradient> find(const at::Tensor& tensor) override {
    py::gil_scoped_acquire lock;
    py::object t = py::cast(tensor);
    if (!py::isinstance(t, type_)) return nullptr;
    return t.attr("_gradient").cast<std::shared_ptr<Gradient>>();
  }
  bool has_hooks(const at::Tensor& parameter) override {
    py::gil_scoped_acquire lock;
    py::object p = py::cast(parameter);
    return py::bool_(p.attr("_backward_hooks")) || py::bool_(p.attr("_post_accumulate_grad_hooks"));
  }

 private:
  py::object type_;
};

OptimizerOptions options_of(const std::string& schedule, const std::string& collapse, bool exact,
                            const std::optional<std::string>& state_format,
                            const std::optional<std::string>& weight_format, const py::object& seed,
                            bool count_rounding) {
  const py::int_ least(0), most(std::numeric_limits<std::uint64_t>::max());
  check(py::isinstance<py::int_>(seed) && least <= seed && seed <= most, "seed is ", std::string(py::str(seed)),
        ", expected a number from 0 to 2^64 - 1");
  check(schedule == "at_step" || schedule == "in_backward", "schedule is \"", schedule,
        "\", expected \"at_step\" or \"in_backward\"");
  check(collapse == "auto" || collapse == "never", "collapse is \"", collapse, "\", expected \"auto\" or \"never\"");
  return {.schedule = schedule == "at_step" ? Schedule::at_step : Schedule::in_backward,
          .collapse = collapse == "auto" ? Collapse::automatic : Collapse::never,
          .exact = exact,
          .state_format = state_format ? std::optional(format_of(*state_format)) : std::nullopt,
          .weight_format = weight_format ? format_of(*weight_format) : Format::bf16,
          .seed = seed.cast<std::uint64_t>(),
          .count_rounding = count_rounding};
}

const char* kind_of(const Outer&) { return "dYᵀX"; }
const char* kind_of(const Rows&) { return "rows"; }
const char* kind_of(const Dense&) { return "dense"; }

// What each term is and how many tokens it has; a dense one has none.
std::vector<std::pair<std::string, std::int64_t>> terms_of(const Gradient& G) {
  Gradient::Lock held = G.lock();
  std::vector<std::pair<std::string, std::int64_t>> all;
  auto tokens = [](const auto& t) {
    if constexpr (requires { t.X; }) return t.X.rows;
    if constexpr (requires { t.values; }) return t.values.rows;
    return std::int64_t{0};
  };
  for (const Term& term : G.terms()) std::visit([&](const auto& t) { all.emplace_back(kind_of(t), tokens(t)); }, term);
  return all;
}

// A gradient is waited for without the interpreter's lock: who has it may be waiting for that.
void define_gradient(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  auto property = [](auto getter) { return py::cpp_function(getter, Release()); };
  py::class_<Gradient, std::shared_ptr<Gradient>>(m, "Gradient", "scale · Σ terms: the gradient of one parameter.")
      .def("add_", &Gradient::add_, py::arg("other"), py::arg("factor") = 1.0, Release())
      .def("mul_", py::overload_cast<const at::Tensor&>(&Gradient::mul_), Release())
      .def("mul_", py::overload_cast<double>(&Gradient::mul_), Release())
      .def("zero_", &Gradient::zero_, Release())
      .def("clear", &Gradient::clear, Release())
      .def("clone", &Gradient::clone, Release())
      .def("expose", &Gradient::expose, py::arg("reason"), Release())
      .def(
          "sum_squares", [](const Gradient& G) { return G.sum_squares(G.exact()); }, Release())
      .def("finite", &Gradient::finite, Release())
      .def("held_bytes", &Gradient::held_bytes, Release())
      .def_property_readonly("exposed", property(&Gradient::exposed))
      .def_property_readonly("spent", property(&Gradient::spent))
      .def_property_readonly("scale", property([](const Gradient& G) { return G.scale().read(); }))
      .def_property_readonly("terms", property(&terms_of));
}

py::tuple as_tuple(const RoundingCount& c) { return py::make_tuple(c.elements, c.lost, c.saturated, c.not_finite); }

// {"matrices": [(parameter's place, name, count)], "formats": {"weight, bf16": count}, "skipped_steps": number}
py::dict as_dict(const RoundingReport& r) {
  py::list matrices;
  for (const auto& [matrix, count] : r.by_matrix())
    matrices.append(py::make_tuple(matrix.first, matrix.second, as_tuple(count)));
  py::dict formats;
  for (const auto& [kind, count] : r.by_format())
    formats[py::str(kind.first + ", " + name_of(kind.second))] = as_tuple(count);
  return py::dict(py::arg("matrices") = matrices, py::arg("formats") = formats,
                  py::arg("skipped_steps") = r.skipped_steps);
}

void define_optimizer(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<MemoryReport>(m, "MemoryReport", "Bytes, as in forge/torch/optimizer.h.")
      .def_readonly("weights", &MemoryReport::weights)
      .def_readonly("state", &MemoryReport::state)
      .def_readonly("held_terms", &MemoryReport::held_terms)
      .def_property_readonly("dense_gradients",
                             [](const MemoryReport& r) { return r.dense_matrices + r.dense_vectors; })
      .def_readonly("gradients", &MemoryReport::gradients)
      .def_readonly("collapses", &MemoryReport::collapses);
  py::class_<OrdinaryGradients>(m, "OrdinaryGradients", "Of one parameter, for one reason.")
      .def_readonly("parameter", &OrdinaryGradients::parameter)
      .def_readonly("reason", &OrdinaryGradients::reason)
      .def_readonly("times", &OrdinaryGradients::times);
  py::class_<HostedOptimizer>(m, "HostedOptimizer")
      .def(py::init([](py::handle host, const std::string& rule, const std::string& schedule,
                       const std::string& collapse, bool exact, const std::optional<std::string>& state_format,
                       const std::optional<std::string>& weight_format, const py::object& seed, bool count_rounding) {
        return std::make_unique<HostedOptimizer>(
            host, rule, options_of(schedule, collapse, exact, state_format, weight_format, seed, count_rounding));
      }))
      .def("add", &HostedOptimizer::add)
      .def("follows", &HostedOptimizer::follows)
      .def("begin_following", &HostedOptimizer::begin_following)
      .def("finish_following", &HostedOptimizer::finish_following)
      .def("cancel_following", &HostedOptimizer::cancel_following)
      .def("check_state", &HostedOptimizer::check_state)
      .def("forget_rounding", &HostedOptimizer::forget_rounding)
      .def("check_group", &HostedOptimizer::check_group)
      .def("check_formats", &HostedOptimizer::check_formats)
      .def("step_by", &HostedOptimizer::step_by, Release())
      .def("step_scaled", &HostedOptimizer::step_scaled, Release())
      .def("step", &HostedOptimizer::step, Release())
      .def("memory", &Optimizer::memory, Release())
      .def("peak_memory", &Optimizer::peak_memory, Release())
      .def("reset_peak_memory", &Optimizer::reset_peak_memory)
      .def("rounding", [](const HostedOptimizer& o) { return as_dict(o.rounding()); })
      .def("ordinary_gradients", &Optimizer::ordinary_gradients, Release())
      .def_property_readonly("has_ordinary_gradients", &HostedOptimizer::has_ordinary_gradients)
      .def("not_finite", &Optimizer::not_finite, Release())
      .def("collapses", &HostedOptimizer::collapses, Release());
}

// An AllocationRecorder as a context manager, whose figures may be read when it has ended.
struct RecorderScope {
  std::unique_ptr<AllocationRecorder> recorder;
  std::int64_t live = 0, peak = 0;

  void update() {
    if (!recorder) return;
    live = recorder->live_bytes();
    peak = recorder->peak_bytes();
  }
  void end() {
    update();
    recorder.reset();
  }
};

void define_recorder(py::module_& m) {
  py::class_<RecorderScope>(m, "AllocationRecorder",
                            "Counts, in bytes, what torch's CPU allocator hands out inside its with block, on all "
                            "threads.")
      .def(py::init<>())
      .def(
          "__enter__",
          [](RecorderScope& self) -> RecorderScope& {
            self.recorder = std::make_unique<AllocationRecorder>();
            return self;
          },
          py::return_value_policy::reference)
      .def("__exit__", [](RecorderScope& self, const py::args&) { self.end(); })
      .def("reset_peak",
           [](RecorderScope& self) {
             check(self.recorder != nullptr, "AllocationRecorder: the peak can be reset inside the with block only");
             self.recorder->reset_peak();
           })
      .def_property_readonly("live_bytes", [](RecorderScope& self) { return self.update(), self.live; })
      .def_property_readonly("peak_bytes", [](RecorderScope& self) { return self.update(), self.peak; });
}

// ---- In backward of a compiled graph: false where autograd's ordinary way is to be taken ----------------------------

std::shared_ptr<Record> record_of_graph(const at::Tensor& weight) {
  auto record = find_record(weight);
  if (record) record->watch_uses();  // it may have been frozen until now
  return record;
}

// The graph's compiler uses the memory of dY and X again: both are copied.
bool record_outer(const at::Tensor& weight, const at::Tensor& dY, const at::Tensor& X) {
  auto record = record_of_graph(weight);
  if (!record) return false;
  ScopedPurpose purpose(Purpose::held_copy);
  return record->record_outer({dY.clone()}, {X.clone()});
}

bool record_rows(const at::Tensor& weight, const at::Tensor& index, const at::Tensor& values,
                 std::int64_t padding_idx) {
  auto record = record_of_graph(weight);
  if (!record) return false;
  ScopedPurpose purpose(Purpose::held_copy);
  return record->record_rows(index.to(at::kLong), {values.clone()}, padding_idx);
}

StoredTensor moment_of(const at::Tensor& values, const std::optional<at::Tensor>& scale) {
  if (!scale) return values;
  return {values.scalar_type() == at::kFloat8_e4m3fn ? Format::fp8 : Format::int8, values, *scale};
}

// What a rule with a group's options keeps of a parameter: its moments as (key, whether it is never negative), a
// vector's too where they are others, then its numbers.
py::tuple state_keys(const std::string& rule, const py::dict& group) {
  const OptimizerInfo& optimizer = torch_rule(rule);
  RuleStep step = optimizer.prepare(values_of(optimizer, group), {});
  const RuleInfo& info = step.rule();
  py::list moments, scalars;
  auto add_moments = [&](const RuleInfo& of) {
    for (const Moment& moment : of.moments)
      moments.append(py::make_tuple(moment.key, moment.sign == Sign::not_negative));
  };
  add_moments(info);
  if (info.for_weight) add_moments(step.for_weight({.dimensions = 1}).rule());
  if (optimizer.counts_steps) scalars.append("step");
  for (const char* scalar : info.scalars) scalars.append(scalar);
  return py::make_tuple(moments, scalars);
}

// A moment that is kept in int8 or fp8, as fp32 numbers.
at::Tensor dequantize(const at::Tensor& values, const at::Tensor& scale, bool not_negative) {
  return in_format(moment_of(values, scale), Format::fp32, not_negative ? Sign::not_negative : Sign::any).values;
}

// p ← p + factor · moment, in fp32, with what the optimizer keeps beside p and beside the moment.
void add_moment_(const at::Tensor& p, const std::optional<at::Tensor>& low, const at::Tensor& values,
                 const std::optional<at::Tensor>& scale, double factor) {
  StoredTensor W = p;
  if (low) W = {low->scalar_type() == at::kShort ? Format::bf16_plus16 : Format::bf16_plus8, p, *low};
  at::Tensor numbers = in_format(W, Format::fp32, Sign::any).values;
  numbers.add_(in_format(moment_of(values, scale), Format::fp32, Sign::any).values, factor);
  if (numbers.is_same(p)) return;
  StoredTensor updated = in_format(numbers, W.format, Sign::any);
  p.copy_(updated.values);
  if (low) low->copy_(updated.rest);
}

void define_functions(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("grad_norm", &grad_norm, Release());
  m.def("clip_grad_norm_", &clip_grad_norm_, py::arg("params"), py::arg("max_norm"),
        py::arg("error_if_nonfinite") = false, Release());
  m.def("rule_names", &rule_names);
  m.def("rule_options", &rule_options);
  m.def("state_keys", &state_keys, py::arg("rule"), py::arg("group"));
  m.def("load_rule_library", &load_rule_library);
  m.def("add_moment_", &add_moment_);
  m.def("dequantize", &dequantize, py::arg("values"), py::arg("scale"), py::arg("not_negative"));
  // Uses of a held weight are recorded, and not left to autograd.
  m.def("is_recorded", [](const at::Tensor& weight) {
    auto record = find_record(weight);
    return record != nullptr && record->recording();
  });
  m.def(
      "set_recording",
      [](const at::Tensor& weight, bool recording) {
        if (auto record = find_record(weight)) record->set_recording(recording);
      },
      Release());
  m.def("record_outer", &record_outer, Release());
  m.def("record_rows", &record_rows, Release());
  // What kernels can run on here, `ref` first, and what they do.
  m.def("targets", [] {
    std::vector<std::string> names;
    for (Target target : available_targets()) names.emplace_back(name_of(target));
    return names;
  });
  m.def("kernels", [] { return std::string(name_of(best_target())); });
  // Whether weights on devices of this type ("cpu", "cuda") can be updated.
  m.def("has_kernels", [](const std::string& type) { return has_kernels(c10::Device(type).type()); });
}

}  // namespace
}  // namespace forge::python

TORCH_LIBRARY_IMPL(aten, PythonTLSSnapshot, m) { m.impl("isfinite", &forge::python::isfinite); }

PYBIND11_MODULE(_C, m) {
  using namespace forge::python;
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const forge::Error& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what());  // as where it comes out of backward
    }
  });
  // Never destroyed: gradients may be asked for until the process ends.
  m.def("install", [](py::object handle_type) { forge::install(new PythonHandles(std::move(handle_type))); });
  m.def("make_handle", &make_handle);
  m.def("make_ordinary", &make_ordinary);
  m.def("unreadable_storage", &unreadable_storage);
  define_gradient(m);
  define_optimizer(m);
  define_recorder(m);
  define_functions(m);
}
