#include "forge/torch/record.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/mul.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <mutex>
#include <unordered_map>
#include <utility>

#include "forge/base/error.h"
#include "forge/torch/allocation.h"
#include "forge/torch/device_kernels.h"
#include "forge/torch/handle.h"

namespace forge {
namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<const c10::TensorImpl*, std::weak_ptr<Record>> by_parameter;

  static Registry& get() {
    // Never destroyed: a record may outlive static variables.
    static auto* registry = new Registry;
    return *registry;
  }
};

}  // namespace

std::shared_ptr<Record> find_record(const at::Tensor& parameter) {
  Registry& registry = Registry::get();
  std::scoped_lock lock(registry.mutex);
  auto found = registry.by_parameter.find(parameter.unsafeGetTensorImpl());
  return found == registry.by_parameter.end() ? nullptr : found->second.lock();
}

Gradient& gradient(const at::Tensor& parameter) {
  check(parameter.defined(), "gradient: the parameter is undefined");
  auto record = find_record(parameter);
  check(record != nullptr, "gradient: no optimizer holds this parameter of shape ", parameter.sizes());
  auto current = record->current();
  check(current != nullptr, "gradient: the .grad of this parameter of shape ", parameter.sizes(),
        " holds no recorded gradient");
  return *current;
}

// ---- A record's life ----------------------------------------------------------------------------------------------

std::shared_ptr<Record> Record::make(const at::Tensor& parameter, const Settings& settings,
                                     std::shared_ptr<Ledger> ledger, std::function<void()> backward_done) {
  std::shared_ptr<Record> record(new Record(parameter, settings, std::move(ledger), std::move(backward_done)));
  {
    Registry& registry = Registry::get();
    std::scoped_lock lock(registry.mutex);
    auto& entry = registry.by_parameter[parameter.unsafeGetTensorImpl()];
    check(entry.expired() || settings.handles, "the parameter of shape ", parameter.sizes(),
          " is held by another optimizer; destroy that one first");
    entry = record;
  }
  record->watch_uses();
  return record;
}

Record::Record(const at::Tensor& parameter, const Settings& settings, std::shared_ptr<Ledger> ledger,
               std::function<void()> backward_done)
    : parameter_(parameter), settings_(settings), ledger_(std::move(ledger)), backward_done_(std::move(backward_done)) {
  check(!settings.handles || gradient_handles() != nullptr, "Record: no class of handles is installed");
  if (!grad_is_handle()) own_ = new_gradient();
}

Record::~Record() {
  Registry& registry = Registry::get();
  std::scoped_lock lock(registry.mutex);
  auto found = registry.by_parameter.find(parameter_.unsafeGetTensorImpl());
  // A record that was refused was never entered, and one that was taken over is not there: the entry is another's.
  if (found != registry.by_parameter.end() && found->second.expired()) registry.by_parameter.erase(found);
}

std::shared_ptr<Gradient> Record::new_gradient() const {
  auto G = std::make_shared<Gradient>(parameter_, ledger_);
  // In in_backward the terms are gone before they could outweigh a dense gradient for long.
  bool collapses = !in_backward() || settings_.collapse == Collapse::always;
  G->set_policy(collapses ? settings_.collapse : Collapse::never, settings_.exact);
  return G;
}

struct Record::UseHook final : torch::autograd::FunctionPostHook {
  std::weak_ptr<Record> record;

  explicit UseHook(std::weak_ptr<Record> r) : record(std::move(r)) {}
  std::vector<at::Tensor> operator()(const std::vector<at::Tensor>& outputs,
                                     const std::vector<at::Tensor>& inputs) override {
    if (auto alive = record.lock()) alive->uses_done(inputs);
    return outputs;
  }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {
    fail("compiled autograd is not supported with an optimizer of this library; compile the forward pass only");
  }
};

void Record::watch_uses() {
  if (node_ != nullptr || !parameter_.requires_grad()) return;
  // auto: the pointer to a node is a shared_ptr up to torch 2.11 or so and an intrusive_ptr later.
  auto node = torch::autograd::impl::grad_accumulator(parameter_);
  node->add_post_hook(std::make_unique<UseHook>(weak_from_this()));
  node_key_ = node.get();
  node_ = std::make_shared<decltype(node)>(std::move(node));
}

// ---- Where the gradient is ----------------------------------------------------------------------------------------

std::shared_ptr<Gradient> Record::current() const {
  if (own_) return own_;
  const at::Tensor& grad = parameter_.grad();
  if (!grad.defined()) return nullptr;
  if (handle_ && handle_->_unsafe_get_target() == grad.unsafeGetTensorImpl())
    if (auto known = behind_handle_.lock()) return known;
  return gradient_behind(grad);
}

Gradient& Record::open() {
  if (auto G = current()) return *G;
  auto G = new_gradient();
  at::Tensor handle = gradient_handles()->make(G, parameter_);
  handle_.emplace(handle.getIntrusivePtr());
  behind_handle_ = G;
  parameter_.mutable_grad() = std::move(handle);
  return *G;  // .grad keeps it
}

// ---- Backward -----------------------------------------------------------------------------------------------------

// The gradient would see what the user writes into a tensor of their own before step().
at::Tensor Record::keepable(const Factor& factor) const {
  bool waits = !in_backward() && settings_.collapse != Collapse::always;
  if (!factor.users_own || !waits) return factor.tensor;
  ScopedPurpose purpose(Purpose::held_copy);
  at::AutoDispatchBelowADInplaceOrView no_history;
  return factor.tensor.clone(at::MemoryFormat::Contiguous);
}

void Record::record_outer(const Factor& dY, const Factor& X) {
  check_not_updated();
  open().add_outer(keepable(dY), keepable(X));
}

void Record::record_rows(const at::Tensor& index, const at::Tensor& values, std::int64_t padding_idx) {
  check_not_updated();
  has_had_rows_ = true;
  ScopedPurpose purpose(Purpose::held_copy);
  at::Tensor used = padding_idx >= 0 ? index.ne(padding_idx).nonzero().reshape({-1}) : at::Tensor();
  if (used.defined() && used.numel() < index.numel())
    return open().add_rows(index.index_select(0, used), values.index_select(0, used));
  open().add_rows(index.clone(), values);
}

bool Record::wants_tensor() const {
  if (has_hooks()) return true;
  if (grad_is_handle() && parameter_.grad().defined() && !current()) return true;
  const auto* tasks = torch::autograd::get_current_graph_task_exec_info();
  if (tasks == nullptr) return false;
  auto found = tasks->find(static_cast<torch::autograd::Node*>(node_key_));
  return found != tasks->end() && found->second.captures_ != nullptr;
}

bool Record::has_hooks() const {
  const auto& hooks = torch::autograd::impl::hooks(parameter_);
  bool after = torch::autograd::impl::post_acc_grad_hooks(parameter_) != nullptr;
  if (hooks.empty() && !after) return false;
  // Another language's list counts as one hook, whatever it holds.
  return hooks.size() > 1 || gradient_handles() == nullptr || gradient_handles()->has_hooks(parameter_);
}

void Record::uses_done(const std::vector<at::Tensor>& arrived) {
  note_grad();
  if (!in_backward()) return own_grad(arrived);
  if (find_record(parameter_).get() != this) return;  // the optimizer made last applies it
  if (own_->empty() && !parameter_.grad().defined()) return;
  if (updated_) parameter_.mutable_grad() = at::Tensor();  // what must not be applied does not stay either
  note_grad();
  check_not_updated();
  check_not_awaited();
  backward_done_();
}

void Record::check_not_awaited() const {
  for (const auto& hook : static_cast<torch::autograd::Node*>(node_key_)->post_hooks())
    check(
        dynamic_cast<UseHook*>(hook.get()) != nullptr, "in_backward: the gradient of the parameter of shape ",
        parameter_.sizes(),
        " is waited for, as DistributedDataParallel does to average it, and would be applied before; use the schedule "
        "at_step");
}

// AccumulateGrad may take over a tensor whose storage a term still refers to as its dY; adding to it in place or
// scaling it would then change the term.
void Record::own_grad(const std::vector<at::Tensor>& arrived) {
  at::Tensor& grad = parameter_.mutable_grad();
  if (!grad.defined() || !grad.has_storage() || arrived.empty() || !arrived[0].defined()) return;
  if (arrived[0].is_alias_of(grad) && grad.storage().use_count() > 2) grad = grad.clone();
}

bool Record::is_updated() const {
  return updated_ || (spent_ && spent_->spent() && parameter_.grad().is_same(spent_handle_));
}

void Record::check_not_updated() const {
  check(!is_updated(), "a second backward would update the parameter of shape ", parameter_.sizes(),
        " again before step() and zero_grad(); call both after each backward, or use the schedule at_step");
}

// ---- .grad --------------------------------------------------------------------------------------------------------

void Record::note_grad() {
  const at::Tensor& grad = parameter_.grad();
  bool ordinary = grad.defined() && !(own_ ? gradient_behind(grad) : current());
  std::int64_t bytes = ordinary ? static_cast<std::int64_t>(grad.nbytes()) : 0;
  ledger_->add_dense(parameter_.dim() == 2, bytes - std::exchange(grad_bytes_, bytes));
}

void Record::end_step() {
  updated_ = false;
  watch_uses();
}

void Record::reset() {
  if (own_) own_->clear();
  parameter_.mutable_grad() = at::Tensor();
  note_grad();
}

void Record::spend() {
  reset();
  updated_ = true;
  if (!settings_.handles) return;
  if (!spent_) {
    spent_ = new_gradient();
    spent_handle_ = gradient_handles()->make(spent_, parameter_);
  }
  spent_->spend();
  parameter_.mutable_grad() = spent_handle_;
}

void Record::absorb_grad() {
  const at::Tensor& there = parameter_.grad();
  if (!own_ || own_->empty() || !there.defined() || gradient_behind(there)) return;
  at::Tensor grad = std::exchange(parameter_.mutable_grad(), at::Tensor());
  note_grad();
  own_->add_dense(grad);
}

// ---- Uses and wholes ----------------------------------------------------------------------------------------------

std::shared_ptr<Record> record_for_use(const at::Tensor& weight) {
  if (!c10::GradMode::is_enabled() || !weight.requires_grad() || !weight.is_leaf()) return nullptr;
  auto record = find_record(weight);
  if (!record || !weight.is_contiguous()) return nullptr;
  bool transformed = c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
                     weight._fw_grad(0).defined();
  if (transformed) return nullptr;
  record->watch_uses();  // it may have been frozen until now
  return record;
}

WholeGradient::WholeGradient(const at::Tensor& parameter, Record* record) : shape_(matrix_shape(parameter)) {
  if (record) record->absorb_grad();
  if (record) recorded_ = record->current();
  if (recorded_ && !recorded_->empty()) return;
  recorded_ = gradient_behind(parameter.grad());
  if (recorded_) {
    recorded_->expression();  // a spent one says so
    if (recorded_->empty()) recorded_ = nullptr;
    return;
  }
  grad_ = parameter.grad();
  take(parameter);
}

WholeGradient::WholeGradient(const at::Tensor& parameter, at::Tensor grad)
    : grad_(std::move(grad)), shape_(matrix_shape(parameter)) {
  take(parameter);
}

void WholeGradient::take(const at::Tensor& parameter) {
  if (!grad_.defined()) return;
  check_operand("Gradient", "a parameter's .grad", grad_);
  check(grad_.sizes() == parameter.sizes(), "Gradient: a parameter's .grad is ", grad_.sizes(), ", expected ",
        parameter.sizes());
  dense_ = in_layout_of(parameter, grad_.detach());
  term_ = Dense{as_matrix(dense_, shape_)};
}

Expression WholeGradient::expression() const {
  return recorded_ ? recorded_->expression() : Expression{shape_.out, shape_.in, {&term_, dense_.defined() ? 1u : 0u}};
}

at::Tensor WholeGradient::sum_squares(bool exact) const {
  if (recorded_) return recorded_->sum_squares(exact);
  return kernels_of(dense_.device().type()).sum_squares({dense_.device(), exact}, expression(), {});
}

void WholeGradient::mul_(const at::Tensor& factor) {
  if (recorded_) return recorded_->mul_(factor);
  c10::impl::ExcludeDispatchKeyGuard no_autograd(c10::autograd_dispatch_keyset);
  scale_in_place(grad_, factor);
}

}  // namespace forge
