#include "forge/torch/record.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/index_select.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <atomic>
#include <unordered_map>
#include <utility>

#include "forge/base/error.h"
#include "forge/torch/allocation.h"
#include "forge/torch/handle.h"

namespace forge {
namespace {

struct Registry {
  std::mutex mutex;
  std::unordered_map<const c10::TensorImpl*, std::weak_ptr<Record>> by_parameter;
  std::atomic<std::size_t> size = 0;  // of the map, for who only asks whether there is any

  static Registry& get() {
    // Never destroyed: a record may outlive static variables.
    static auto* registry = new Registry;
    return *registry;
  }
};

// auto: the pointer to a node is a shared_ptr up to torch 2.11 or so and an intrusive_ptr later. Null where no graph
// refers to the parameter.
auto accumulator_of(const at::Tensor& parameter) { return torch::autograd::impl::try_get_grad_accumulator(parameter); }

// The lock under which AccumulateGrad changes .grad. A node shows it to its subclasses only.
struct NodeLock : torch::autograd::Node {
  static std::mutex& of(torch::autograd::Node& node) { return node.*(&NodeLock::mutex_); }
};

std::int64_t bytes_of(const at::Tensor& t) {
  if (!t.defined()) return 0;
  if (t.is_sparse()) return static_cast<std::int64_t>(t._indices().nbytes() + t._values().nbytes());
  return t.layout() == at::kStrided ? static_cast<std::int64_t>(t.nbytes()) : 0;
}

constexpr const char* kPast =
    "used by something other than F.linear, F.embedding and @, or in a graph of torch.compile made without "
    "forge_optim.fuse(model)";
constexpr const char* kAssigned = "its .grad was assigned, by the loop or by what distributes the model (FSDP2)";

}  // namespace

bool any_record() { return Registry::get().size.load(std::memory_order_relaxed) != 0; }

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
    registry.size = registry.by_parameter.size();
  }
  record->watch_uses();
  return record;
}

Record::Record(const at::Tensor& parameter, const Settings& settings, std::shared_ptr<Ledger> ledger,
               std::function<void()> backward_done)
    : parameter_(parameter), settings_(settings), ledger_(std::move(ledger)), backward_done_(std::move(backward_done)) {
  check(!settings.handles || gradient_handles() != nullptr, "Record: no class of handles is installed");
  if (!grad_is_handle() && has_memory(parameter)) own_ = new_gradient();
}

Record::~Record() {
  Registry& registry = Registry::get();
  std::scoped_lock lock(registry.mutex);
  auto found = registry.by_parameter.find(parameter_.unsafeGetTensorImpl());
  // A record that was refused was never entered, and one that was taken over is not there: the entry is another's.
  if (found != registry.by_parameter.end() && found->second.expired()) registry.by_parameter.erase(found);
  registry.size = registry.by_parameter.size();
}

void Record::serve(std::function<void()> backward_done) {
  std::scoped_lock lock(ledger_->gradients_in_use);
  backward_done_ = std::move(backward_done);
}

std::shared_ptr<Gradient> Record::new_gradient() const {
  auto G = std::make_shared<Gradient>(parameter_, ledger_);
  ledger_->enter(G);
  // In in_backward the terms are gone before they could outweigh a dense gradient for long.
  bool collapses = !in_backward() || settings_.collapse == Collapse::always;
  G->set_policy(collapses ? settings_.collapse : Collapse::never, settings_.exact);
  return G;
}

// ---- The hook -----------------------------------------------------------------------------------------------------

// A hook of the tensor, which is called when its last use in a backward pass is done, with what is about to be added to
// .grad. It stays with the tensor, where a hook of its AccumulateGrad node would go with the node; and to keep the node
// alive would keep the shape that the parameter had.
class Record::UseHook final : public torch::autograd::FunctionPreHook {
 public:
  explicit UseHook(std::weak_ptr<Record> record) : record_(std::move(record)) {}
  std::vector<at::Tensor> operator()(const std::vector<at::Tensor>& arrived) override {
    auto alive = record_.lock();
    return alive ? alive->uses_done(arrived) : arrived;
  }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs&) const override {
    fail("compiled autograd is not supported with an optimizer of this library; compile the forward pass only");
  }
  bool is_of(const Record* record) const { return record_.lock().get() == record; }
  bool has_ended() const { return record_.expired(); }

  static UseHook* from(const std::unique_ptr<torch::autograd::FunctionPreHook>& hook) {
    return dynamic_cast<UseHook*>(hook.get());
  }

 private:
  std::weak_ptr<Record> record_;
};

// Python's first hook on a tensor takes the place of those that C++ has given it, so this is asked at each use.
void Record::watch_uses() {
  if (!parameter_.requires_grad()) return;
  auto& hooks = torch::autograd::impl::hooks(parameter_);
  auto is_ours = [&](const auto& hook) {
    UseHook* use = UseHook::from(hook);
    return use && use->is_of(this);
  };
  if (std::ranges::any_of(hooks, is_ours)) return;
  std::scoped_lock lock(ledger_->gradients_in_use);
  if (std::ranges::any_of(hooks, is_ours)) return;
  std::erase_if(hooks, [](const auto& hook) {
    UseHook* use = UseHook::from(hook);
    return use && use->has_ended();
  });
  hooks.push_back(std::make_unique<UseHook>(weak_from_this()));  // add_hook() would have it be the only one
}

// What a backward pass holds while it looks at or changes the parameter's gradient. First the lock under which autograd
// changes .grad, where it may ask Python and Python the gradient; then that of the gradients.
class Record::Access {
 public:
  explicit Access(const Record& record) : node_(accumulator_of(record.parameter_)) {
    if (node_) of_grad_ = std::unique_lock(NodeLock::of(*node_));
    of_gradients_ = std::unique_lock(record.ledger_->gradients_in_use);
  }

 private:
  decltype(accumulator_of({})) node_;
  std::unique_lock<std::mutex> of_grad_;
  std::unique_lock<std::recursive_mutex> of_gradients_;
};

// ---- Where the gradient is ----------------------------------------------------------------------------------------

std::shared_ptr<Gradient> Record::current() const {
  if (own_) return own_;
  const at::Tensor& grad = parameter_.grad();
  if (!grad.defined()) return nullptr;
  // A handle that was given memory (.data = …) is one no more.
  bool known = handle_ && handle_->_unsafe_get_target() == grad.unsafeGetTensorImpl() &&
               grad.key_set().has(c10::DispatchKey::Python);
  if (known)
    if (auto G = behind_handle_.lock()) return G;
  return gradient_behind(grad);
}

Gradient& Record::open() {
  if (own_ && own_->is_of(parameter_)) return *own_;
  if (own_) {
    check(own_->empty(), "Gradient: the parameter has another shape or device now, ", parameter_.sizes(), " on ",
          parameter_.device().str(), ", and a gradient from before; call zero_grad() first");
    own_ = new_gradient();
    return *own_;
  }
  if (auto G = current()) return *G;
  auto G = new_gradient();
  at::Tensor handle = gradient_handles()->make(G, parameter_);
  handle_.emplace(handle.getIntrusivePtr());
  behind_handle_ = G;
  parameter_.mutable_grad() = std::move(handle);
  return *G;  // .grad keeps it
}

// ---- Backward -----------------------------------------------------------------------------------------------------

// The gradient would see what somebody else writes into the tensor before step() or, in_backward, before the weight's
// last use.
at::Tensor Record::keepable(const Factor& factor) const {
  bool waits = settings_.collapse != Collapse::always;
  if (!factor.may_change || !waits) return factor.tensor;
  ScopedPurpose purpose(Purpose::held_copy);
  at::AutoDispatchBelowADInplaceOrView no_history;
  return factor.tensor.clone(at::MemoryFormat::Contiguous);
}

bool Record::record_outer(const Factor& dY, const Factor& X) {
  Access access(*this);
  if (!takes_terms()) return false;
  open().add_outer(keepable(dY), keepable(X));
  return true;
}

bool Record::record_rows(const at::Tensor& index, const Factor& values, std::int64_t padding_idx) {
  Access access(*this);
  if (!takes_terms()) return false;
  has_had_rows_ = true;
  ScopedPurpose purpose(Purpose::held_copy);
  at::Tensor used = padding_idx >= 0 ? index.ne(padding_idx).nonzero().reshape({-1}) : at::Tensor();
  if (used.defined() && used.numel() < index.numel())
    open().add_rows(index.index_select(0, used), values.tensor.index_select(0, used));
  else
    open().add_rows(index.clone(), keepable(values));
  return true;
}

bool Record::takes_terms() {
  if (is_asked_for()) return false;
  if (const char* why = why_ordinary()) return expected_ = why, false;
  check_not_updated();
  return true;
}

const char* Record::why_ordinary() const {
  if (!recording()) return "recording was turned off (forge_optim.unfuse)";
  if (has_hooks()) return "the weight has gradient hooks";
  if (grad_is_handle() && parameter_.grad().defined() && !current())
    return "its .grad is an ordinary tensor already, to which autograd adds";
  return nullptr;
}

// By torch.autograd.grad, in the backward pass that this thread is in.
bool Record::is_asked_for() const {
  const auto* tasks = torch::autograd::get_current_graph_task_exec_info();
  if (tasks == nullptr) return false;
  auto found = tasks->find(accumulator_of(parameter_).get());
  return found != tasks->end() && found->second.captures_ != nullptr;
}

bool Record::has_hooks() const {
  const auto& hooks = torch::autograd::impl::hooks(parameter_);
  auto others = std::ranges::count_if(hooks, [](const auto& hook) { return UseHook::from(hook) == nullptr; });
  bool after = torch::autograd::impl::post_acc_grad_hooks(parameter_) != nullptr;
  if (others == 0 && !after) return false;
  // Another language's list counts as one hook, whatever it holds.
  return others > 1 || gradient_handles() == nullptr || gradient_handles()->has_hooks(parameter_);
}

void Record::expect_ordinary(const char* reason) {
  std::scoped_lock lock(ledger_->gradients_in_use);
  expected_ = reason;
}

void Record::note_arrival(const at::Tensor& arrived) {
  const char* reason = std::exchange(expected_, nullptr);
  if (arrived.defined() && parameter_.dim() == 2) {
    count_ordinary(reason ? reason : kPast);
    ordinary_arrived_ = true;
  }
  if (arrived.defined() && !parameter_.grad().defined())
    note_grad_bytes(arrived);
  else
    note_grad();
}

void Record::note_applied_ordinary() {
  const char* reason = std::exchange(expected_, nullptr);
  if (parameter_.dim() == 2 && !ordinary_arrived_) count_ordinary(reason ? reason : kAssigned);
}

void Record::count_ordinary(const char* reason) {
  ++ordinary_[reason];
  ledger_->has_ordinary = true;
}

std::vector<at::Tensor> Record::uses_done(std::vector<at::Tensor> arrived) {
  Access access(*this);
  itself_.reset();  // who called keeps this
  if (arrived.empty() || is_asked_for()) return arrived;
  at::Tensor& grad = arrived[0];
  note_arrival(grad);
  if (in_backward()) {
    if (!served_) hand_over();
    // What others wait for stays until step(); and the optimizer made last applies it.
    if (!own_ || find_record(parameter_).get() != this || !served_ || has_hooks()) return arrived;
    update_now(std::exchange(grad, at::Tensor()));
    return arrived;
  }
  // AccumulateGrad would take over a tensor whose storage a term still refers to as its dY; adding to it in place or
  // scaling it would then change the term.
  bool taken_over = grad.defined() && !parameter_.grad().defined() && grad.has_storage();
  if (taken_over && grad.storage().use_count() > 1) grad = grad.clone();
  return arrived;
}

void Record::update_now(const at::Tensor& arrived) {
  at::Tensor& grad = parameter_.mutable_grad();
  if (own_->empty() && !arrived.defined() && !grad.defined()) return;
  if (updated_) grad = at::Tensor();  // what must not be applied does not stay either
  check_not_updated();
  check_not_awaited();
  if (arrived.defined()) grad = grad.defined() ? grad.add(arrived) : arrived.detach();
  note_grad();
  auto update = backward_done_;  // which ends its optimizer, where nobody else has kept it
  update();
}

void Record::check_not_awaited() const {
  auto node = accumulator_of(parameter_);
  check(!node || node->post_hooks().empty(), "in_backward: the gradient of the parameter of shape ", parameter_.sizes(),
        " is waited for, as DistributedDataParallel does to average it, and would be applied before; use the schedule "
        "at_step");
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
  note_grad_bytes(ordinary ? grad : at::Tensor());
}

void Record::note_grad_bytes(const at::Tensor& ordinary) {
  std::int64_t bytes = bytes_of(ordinary);
  ledger_->add_dense(parameter_.dim() == 2, bytes - std::exchange(grad_bytes_, bytes));
}

void Record::end_step() {
  updated_ = ordinary_arrived_ = false;
  watch_uses();
}

void Record::reset() {
  std::scoped_lock lock(ledger_->gradients_in_use);
  if (own_) own_->clear();
  parameter_.mutable_grad() = at::Tensor();
  note_grad();
}

void Record::spend() {
  reset();
  updated_ = true;
  if (!settings_.handles) return;
  // The first time, and where the parameter or its .grad was given other memory.
  if (!gradient_behind(spent_handle_) || !spent_->is_of(parameter_)) {
    spent_ = new_gradient();
    spent_handle_ = gradient_handles()->make(spent_, parameter_);
  }
  spent_->spend();
  parameter_.mutable_grad() = spent_handle_;
}

void Record::retire() {
  std::scoped_lock lock(ledger_->gradients_in_use);
  backward_done_ = nullptr;
  served_ = false;
  if (in_backward() && own_ && !own_->empty()) itself_ = shared_from_this();
}

void Record::release() {
  std::scoped_lock lock(ledger_->gradients_in_use);
  // What was applied says nothing to who goes on without this optimizer, and autograd would add to it.
  bool spent = spent_handle_.defined() && parameter_.grad().is_same(spent_handle_);
  if (spent) parameter_.mutable_grad() = at::Tensor();
  hand_over();
}

// in_backward: the terms become .grad, an ordinary one.
void Record::hand_over() {
  if (!in_backward() || !own_ || own_->empty()) return;
  absorb_grad();
  at::Tensor grad = own_->materialize(parameter_.scalar_type());
  own_->clear();
  parameter_.mutable_grad() = std::move(grad);
}

void Record::absorb_grad() {
  std::scoped_lock lock(ledger_->gradients_in_use);
  const at::Tensor& there = parameter_.grad();
  if (!own_ || own_->empty() || !there.defined() || gradient_behind(there)) return;
  at::Tensor grad = std::exchange(parameter_.mutable_grad(), at::Tensor());
  note_grad();
  own_->add_dense(grad.is_sparse() ? grad.to_dense() : grad);
}

// ---- Uses ---------------------------------------------------------------------------------------------------------

std::shared_ptr<Record> record_for_use(const at::Tensor& leaf) {
  if (!any_record() || !c10::GradMode::is_enabled() || !leaf.requires_grad()) return nullptr;
  auto record = find_record(leaf);
  if (!record) return nullptr;
  record->watch_uses();  // it may have been frozen until now
  bool transformed = c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode) ||
                     leaf._fw_grad(0).defined();
  const char* why = !record->recording()                       ? "recording was turned off (forge_optim.unfuse)"
                    : transformed                              ? "used under a torch.func transform or forward AD"
                    : leaf.dim() != 2 || !leaf.is_contiguous() ? "not a contiguous matrix"
                    : !has_memory(leaf)                        ? "a tensor without memory"
                    : !is_stored(leaf.scalar_type())           ? "neither fp32 nor bf16"
                                                               : nullptr;
  if (why == nullptr) return record;
  record->expect_ordinary(why);
  return nullptr;
}

}  // namespace forge
