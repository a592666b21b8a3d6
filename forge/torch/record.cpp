#include "forge/torch/record.h"

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
#include "forge/kernels/norm.h"
#include "forge/torch/allocation.h"
#include "forge/torch/executor.h"

namespace forge {
namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<const c10::TensorImpl*, std::weak_ptr<Record>> records;

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
  auto found = registry.records.find(parameter.unsafeGetTensorImpl());
  return found == registry.records.end() ? nullptr : found->second.lock();
}

Gradient& gradient(const at::Tensor& parameter) {
  check(parameter.defined(), "gradient: the parameter is undefined");
  auto record = find_record(parameter);
  check(record != nullptr, "gradient: no optimizer holds this parameter of shape ", parameter.sizes());
  return record->gradient();
}

// ---- A record's life ----------------------------------------------------------------------------------------------

std::shared_ptr<Record> Record::make(const at::Tensor& parameter, const OptimizerOptions& options,
                                     std::shared_ptr<Ledger> ledger, std::function<void()> backward_done) {
  std::shared_ptr<Record> record(new Record(parameter, options, std::move(ledger), std::move(backward_done)));
  {
    Registry& registry = Registry::get();
    std::scoped_lock lock(registry.mutex);
    auto& entry = registry.records[parameter.unsafeGetTensorImpl()];
    check(entry.expired(), "the parameter of shape ", parameter.sizes(),
          " is held by another optimizer; destroy that one first");
    entry = record;
  }
  record->watch_uses();
  return record;
}

Record::Record(const at::Tensor& parameter, const OptimizerOptions& options, std::shared_ptr<Ledger> ledger,
               std::function<void()> backward_done)
    : parameter_(parameter),
      ledger_(std::move(ledger)),
      gradient_(parameter, ledger_),
      in_backward_(options.schedule == Schedule::in_backward),
      copies_users_X_(!in_backward_ && options.collapse != Collapse::always),
      exact_(options.exact),
      backward_done_(std::move(backward_done)) {
  // In in_backward the terms are gone before they could outweigh a dense gradient for long.
  bool collapses = !in_backward_ || options.collapse == Collapse::always;
  gradient_.set_policy(collapses ? options.collapse : Collapse::never, options.exact);
}

Record::~Record() {
  Registry& registry = Registry::get();
  std::scoped_lock lock(registry.mutex);
  auto found = registry.records.find(parameter_.unsafeGetTensorImpl());
  // A record that was refused was never entered, and the entry is another's.
  if (found != registry.records.end() && found->second.expired()) registry.records.erase(found);
}

struct Record::UseHook final : torch::autograd::FunctionPostHook {
  std::weak_ptr<Record> record;

  explicit UseHook(std::weak_ptr<Record> r) : record(std::move(r)) {}
  std::vector<at::Tensor> operator()(const std::vector<at::Tensor>& outputs,
                                     const std::vector<at::Tensor>& inputs) override {
    if (auto alive = record.lock()) alive->uses_done(inputs);
    return outputs;
  }
};

void Record::watch_uses() {
  // auto: the pointer to a node is a shared_ptr up to torch 2.11 or so and an intrusive_ptr later.
  auto node = torch::autograd::impl::grad_accumulator(parameter_);
  node->add_post_hook(std::make_unique<UseHook>(weak_from_this()));
  node_key_ = node.get();
  node_ = std::make_shared<decltype(node)>(std::move(node));
}

// ---- Backward -----------------------------------------------------------------------------------------------------

void Record::record_outer(const at::Tensor& dY, const at::Tensor& X, bool users_own_X) {
  check_not_updated();
  if (users_own_X && copies_users_X_) {
    ScopedPurpose purpose(Purpose::held_copy);
    return gradient_.add_outer(dY, X.clone(at::MemoryFormat::Contiguous));
  }
  gradient_.add_outer(dY, X);
}

void Record::record_rows(const at::Tensor& index, const at::Tensor& values) {
  check_not_updated();
  gradient_.add_rows(index, values);
}

bool Record::is_captured() const {
  const auto* tasks = torch::autograd::get_current_graph_task_exec_info();
  if (tasks == nullptr) return false;
  auto found = tasks->find(static_cast<torch::autograd::Node*>(node_key_));
  return found != tasks->end() && found->second.captures_ != nullptr;
}

void Record::uses_done(const std::vector<at::Tensor>& arrived) {
  note_grad();
  if (!in_backward_) return own_grad(arrived);
  if (empty()) return;
  if (updated_) parameter_.mutable_grad() = at::Tensor();
  note_grad();
  check_not_updated();
  backward_done_();
}

// AccumulateGrad may take over a tensor whose storage a term still refers to as its dY; adding to it in place or
// scaling it would then change the term.
void Record::own_grad(const std::vector<at::Tensor>& arrived) {
  at::Tensor& grad = parameter_.mutable_grad();
  if (!grad.defined() || !grad.has_storage() || arrived.empty() || !arrived[0].defined()) return;
  if (arrived[0].is_alias_of(grad) && grad.storage().use_count() > 2) grad = grad.clone();
}

void Record::check_not_updated() const {
  check(!updated_, "a second backward would update the parameter of shape ", parameter_.sizes(),
        " again before step(); call step() after each backward, or use Schedule::at_step");
}

// ---- .grad --------------------------------------------------------------------------------------------------------

void Record::note_grad() {
  const at::Tensor& grad = parameter_.grad();
  std::int64_t bytes = grad.defined() ? static_cast<std::int64_t>(grad.nbytes()) : 0;
  ledger_->dense(parameter_.dim() == 2).add(bytes - std::exchange(grad_bytes_, bytes));
}

void Record::reset() {
  gradient_.clear();
  parameter_.mutable_grad() = at::Tensor();
  note_grad();
}

void Record::absorb_grad() {
  if (gradient_.empty() || !parameter_.grad().defined()) return;
  at::Tensor grad = std::exchange(parameter_.mutable_grad(), at::Tensor());
  note_grad();
  gradient_.add_dense(grad);
}

// ---- Uses and wholes ----------------------------------------------------------------------------------------------

std::shared_ptr<Record> record_for_use(const at::Tensor& weight) {
  if (!c10::GradMode::is_enabled() || !weight.requires_grad() || !weight.is_leaf()) return nullptr;
  auto record = find_record(weight);
  if (!record) return nullptr;
  bool has_hooks =
      !torch::autograd::impl::hooks(weight).empty() || torch::autograd::impl::post_acc_grad_hooks(weight) != nullptr;
  bool transformed = c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
                     weight._fw_grad(0).defined();
  return has_hooks || transformed ? nullptr : record;
}

WholeGradient::WholeGradient(const at::Tensor& parameter, Record* record) : shape_(matrix_shape(parameter.sizes())) {
  if (record) record->absorb_grad();
  if (record && !record->gradient().empty()) {
    recorded_ = &record->gradient();
    return;
  }
  grad_ = parameter.grad();
  if (!grad_.defined()) return;
  check_operand("Gradient", "a parameter's .grad", grad_);
  check(grad_.sizes() == parameter.sizes(), "Gradient: a parameter's .grad is ", grad_.sizes(), ", expected ",
        parameter.sizes());
  dense_ = grad_.detach().contiguous();
  term_ = Dense{as_matrix(dense_, shape_)};
}

Expression WholeGradient::expression() const {
  return recorded_ ? recorded_->expression() : Expression{shape_.out, shape_.in, {&term_, dense_.defined() ? 1u : 0u}};
}

double WholeGradient::sum_squares(bool exact, GramCache& cache) const {
  if (recorded_) return recorded_->sum_squares(exact, cache);
  Expression G = expression();
  return forge::sum_squares(G, torch_context(G));
}

void WholeGradient::mul_(double factor) {
  if (recorded_) return recorded_->mul_(factor);
  c10::impl::ExcludeDispatchKeyGuard no_autograd(c10::autograd_dispatch_keyset);
  grad_.mul_(static_cast<float>(factor));
}

}  // namespace forge
