#include "forge/torch/optimizer.h"

#include <ATen/ops/zeros_like.h>

#include "forge/torch/allocation.h"
#include "forge/torch/executor.h"
#include "forge/torch/optimizer_impl.h"
#include "forge/torch/update_tensor.h"

namespace forge {

Optimizer::Impl::Impl(OptimizerOptions o, bool h) : options(std::move(o)), handles(h) {
  check(!options.state_dtype || is_stored(*options.state_dtype), "Optimizer: state_dtype is ",
        options.state_dtype.value_or(at::kFloat), ", expected Float or BFloat16");
}

void Optimizer::Impl::hold(const at::Tensor& parameter) {
  check_stored("Optimizer", "a parameter", parameter);
  check(parameter.is_leaf() && (parameter.requires_grad() || handles), "Optimizer: the parameter of shape ",
        parameter.sizes(), " is not a leaf that requires a gradient");
  check(parameter.is_non_overlapping_and_dense(), "Optimizer: the parameter of shape ", parameter.sizes(),
        " has strides ", parameter.strides(), ", which leave gaps or overlap; make it contiguous");
  for (const ParameterState& other : state)
    check(!other.parameter.is_same(parameter), "Optimizer: the parameter of shape ", parameter.sizes(),
          " is given twice");
  Record::Settings settings{options.schedule, options.collapse, options.exact, handles};
  records.push_back(Record::make(parameter, settings, ledger, [this, i = state.size()] { update(i); }));
  state.push_back({parameter, {}, 0});
}

// ---- Updates ------------------------------------------------------------------------------------------------------

at::Tensor Optimizer::Impl::new_moment(std::size_t i) {
  const at::Tensor& parameter = state[i].parameter;
  ScopedPurpose purpose(Purpose::state);
  return at::zeros_like(parameter, options.state_dtype.value_or(parameter.scalar_type())).requires_grad_(false);
}

void Optimizer::Impl::apply(std::size_t i, const Expression& G) {
  ParameterState& s = state[i];
  RuleStep rule = next_rule(i);
  auto moments = static_cast<std::size_t>(moments_of(rule));
  while (s.moments.size() < moments) s.moments.push_back(new_moment(i));
  update_tensor(s.parameter, at::ArrayRef(s.moments).slice(0, moments), G, rule);
  ++s.step;
  store(i);
}

// in_backward: consumes the gradient.
void Optimizer::Impl::update(std::size_t i) {
  load(i);
  apply(i, gradient_of(i).expression());
  records[i]->spend();
}

void Optimizer::Impl::step() {
  bool in_backward = options.schedule == Schedule::in_backward;
  // All are looked at before the first is applied: a step happens as a whole or not at all.
  std::vector<std::pair<std::size_t, WholeGradient>> gradients;
  for (std::size_t i = 0; i < state.size(); ++i) {
    if (in_backward && records[i] && records[i]->is_updated()) continue;
    WholeGradient G = gradient_of(i);
    if (G.empty()) continue;
    load(i);
    next_rule(i);
    G.expression();
    gradients.emplace_back(i, std::move(G));
  }
  for (const auto& [i, G] : gradients) apply(i, G.expression());
  for (auto& record : records)
    if (record) record->end_step();
  release_workspace();
}

// ---- The public class ---------------------------------------------------------------------------------------------

Optimizer::Optimizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Optimizer::~Optimizer() = default;

void Optimizer::step() { impl_->step(); }

void Optimizer::zero_grad() {
  for (auto& record : impl_->records)
    if (record) record->reset();
}

std::span<const ParameterState> Optimizer::state() const { return impl_->state; }
const OptimizerOptions& Optimizer::options() const { return impl_->options; }

namespace {

// The figures of the ledger, each taken by `value`; what no ledger knows is left at 0.
template <class Value>
MemoryReport report(const Ledger& ledger, Value value) {
  return {.held_terms = value(ledger.terms.bytes()),
          .dense_matrices = value(ledger.dense_matrices),
          .dense_vectors = value(ledger.dense_vectors),
          .gradients = value(ledger.gradients)};
}

}  // namespace

MemoryReport Optimizer::memory() const {
  for (auto& record : impl_->records)
    if (record) record->note_grad();
  MemoryReport r = report(*impl_->ledger, [](const Bytes& b) { return b.now(); });
  for (const ParameterState& s : impl_->state) {
    r.weights += static_cast<std::int64_t>(s.parameter.nbytes());
    for (const at::Tensor& moment : s.moments) r.state += static_cast<std::int64_t>(moment.nbytes());
  }
  for (const auto& [reason, times] : impl_->ledger->collapses) r.collapses += times;
  return r;
}

MemoryReport Optimizer::peak_memory() const {
  MemoryReport now = memory();
  MemoryReport r = report(*impl_->ledger, [](const Bytes& b) { return b.peak(); });
  r.weights = now.weights;
  r.state = now.state;
  r.collapses = now.collapses;
  return r;
}

void Optimizer::reset_peak_memory() {
  impl_->ledger->terms.bytes().reset_peak();
  impl_->ledger->dense_matrices.reset_peak();
  impl_->ledger->dense_vectors.reset_peak();
  impl_->ledger->gradients.reset_peak();
}

}  // namespace forge
