#include "forge/torch/optimizer.h"

#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "forge/base/hash.h"
#include "forge/torch/allocation.h"
#include "forge/torch/device_kernels.h"
#include "forge/torch/executor.h"
#include "forge/torch/optimizer_impl.h"
#include "forge/torch/update_tensor.h"

namespace forge {
namespace {

// The optimizer that has its groups itself.
struct LocalImpl final : Optimizer::Impl {
  using Choose = std::function<RuleStep(std::size_t group, const ParameterState& state)>;
  using Advance = std::function<Progress(std::size_t group, const Progress& progress)>;
  LocalImpl(OptimizerOptions o, Choose c, Advance a)
      : Impl(std::move(o)), choose(std::move(c)), advance(std::move(a)) {}

  RuleStep next_rule(std::size_t i) const override { return choose(group_of[i], state[i]); }
  Progress next_progress(std::size_t i) const override { return advance(group_of[i], state[i].progress); }

  Choose choose;
  Advance advance;
  std::vector<std::size_t> group_of;
};

bool is_compressed(Format format) { return info_of(format).columns_of_rest > 1; }

// `whose` is "" or "a group's ".
void check_state_format(const char* whose, std::optional<Format> format) {
  check(!format || info_of(*format).for_moments, "Optimizer: ", whose, "state_format is ",
        name_of(format.value_or(Format::fp32)),
        ", which is for weights; give fp32, bf16, bf16_stochastic, int8 or fp8");
}

// Moments of fewer than 16 bits are for large matrices.
bool is_large(const at::Tensor& parameter) { return parameter.dim() >= 2 && parameter.numel() >= kLeastCompressed; }

bool is_taken(const at::Tensor& parameter, Takes takes) {
  bool fits = parameter.dim() == 2 || (parameter.dim() < 2 && takes == Takes::vectors_and_matrices);
  return takes == Takes::any || (fits && parameter.is_contiguous());
}

// One without memory is taken as it is: memory estimators run steps on such.
void check_parameter(const char* who, const at::Tensor& parameter) {
  if (has_memory(parameter))
    check_stored(who, "a parameter", parameter);
  else
    check_stored_type(who, "a parameter", parameter);
  check(at::has_internal_overlap(parameter) != at::MemOverlap::Yes, who, ": the parameter of shape ", parameter.sizes(),
        " has several elements in one place of memory (strides ", parameter.strides(),
        "), as an expanded tensor has; give it memory of its own with .contiguous()");
}

// A user may have given the parameter other memory since the moment was made.
void follow(const at::Tensor& parameter, const Moment& moment, StoredTensor& there) {
  std::vector<std::int64_t> expected = sizes_of_moment(parameter, moment);
  bool fits = there.values.sizes() == at::IntArrayRef(expected) && there.values.device() == parameter.device();
  at::Tensor laid = there.values;
  if (fits && moment.extent == Extent::element) laid = in_layout_of(parameter, there.values);
  fits = fits && (laid.is_same(there.values) || !there.rest.defined());
  check(
      fits, "step: \"", moment.key, "\" of a parameter of shape ", parameter.sizes(), " on ", parameter.device().str(),
      " is ", there.values.sizes(), " on ", there.values.device().str(),
      "; the parameter was given other memory, so delete its state (in Python optimizer.state.pop(parameter)) or make "
      "another optimizer");
  there.values = laid;
}

void check_formats(const OptimizerOptions& o) {
  check_state_format("", o.state_format);
  check(info_of(o.weight_format).for_weights && info_of(o.weight_format).values == DType::bf16,
        "Optimizer: weight_format is ", name_of(o.weight_format),
        "; give bf16, bf16_stochastic, bf16_plus16 or bf16_plus8. Weights of fp32 stay what they are");
}

}  // namespace

Optimizer::Impl::Impl(OptimizerOptions o, bool h) : options(std::move(o)), handles(h) { check_formats(options); }

void Optimizer::Impl::retire() {
  for (auto& record : records)
    if (record) record->retire();
}

void Optimizer::Impl::serve() {
  for (std::size_t i = 0; i < records.size(); ++i)
    if (records[i]) records[i]->serve([this, i] { update(i); });
}

void Optimizer::Impl::hold(const at::Tensor& parameter, const std::string& name, std::optional<Format> state_format,
                           const RuleInfo& rule, std::shared_ptr<Record> record) {
  check_parameter("Optimizer", parameter);
  check(parameter.is_leaf() && (parameter.requires_grad() || handles), "Optimizer: the parameter of shape ",
        parameter.sizes(), " is not a leaf that requires a gradient");
  check(is_taken(parameter, rule.takes), "Optimizer: ", rule.name, " is for contiguous ",
        rule.takes == Takes::matrices ? "matrices" : "vectors and matrices", ", and a parameter has shape ",
        parameter.sizes(), " and strides ", parameter.strides(), "; give it to another optimizer, AdamW for one");
  if (has_memory(parameter))
    kernels_of(parameter.device().type()).check_rule("Optimizer", rule, options.count_rounding);
  check_state_format("a group's ", state_format);
  for (const ParameterState& other : state)
    check(!other.parameter.is_same(parameter), "Optimizer: the parameter of shape ", parameter.sizes(),
          " is given twice");
  auto update_it = [this, i = state.size()] { update(i); };
  Record::Settings settings{options.schedule, options.collapse, options.exact, handles};
  if (record)
    record->serve(update_it);
  else
    record = Record::make(parameter, settings, ledger, update_it);
  records.push_back(std::move(record));
  state.push_back({.parameter = parameter, .low = {}, .moments = {}, .progress = {}});
  state_formats.push_back(state_format);
  names.push_back(fnv1a(name));
}

// ---- Updates ------------------------------------------------------------------------------------------------------

Format Optimizer::Impl::weight_format_of(std::size_t i) const {
  return state[i].parameter.scalar_type() == at::kBFloat16 ? options.weight_format : Format::fp32;
}

Format Optimizer::Impl::state_format_of(std::size_t i) const {
  if (state_formats[i]) return *state_formats[i];
  const at::Tensor& parameter = state[i].parameter;
  if (!options.state_format) return parameter.scalar_type() == at::kBFloat16 ? Format::bf16 : Format::fp32;
  bool embedding = (i < embeddings.size() && embeddings[i]) || (records[i] && records[i]->has_had_rows());
  return is_compressed(*options.state_format) && (embedding || !is_large(parameter)) ? Format::fp32
                                                                                     : *options.state_format;
}

StoredTensor Optimizer::Impl::new_moment(std::size_t i, const Moment& moment) {
  ScopedPurpose purpose(Purpose::state);
  return zeros_of_moment(state[i].parameter, moment, state_format_of(i));
}

RuleStep Optimizer::Impl::rule_for(std::size_t i) const {
  const at::Tensor& parameter = state[i].parameter;
  double epsilon = parameter.scalar_type() == at::kBFloat16 ? 0x1p-7 : 0x1p-23;
  return next_rule(i).for_weight({.dimensions = parameter.dim(), .epsilon = epsilon});
}

void Optimizer::Impl::prepare(std::size_t i, const RuleStep& rule) {
  ParameterState& s = state[i];
  const at::Tensor& W = s.parameter;
  check_parameter("step", W);
  // The user may have given it memory in another order; one with gaps is updated in a copy, in rows.
  bool in_rows = W.is_contiguous() || !W.is_non_overlapping_and_dense();
  check(in_rows || rule.rule().takes == Takes::any, "step: ", rule.name(), " is for weights in rows, and one of shape ",
        W.sizes(), " has strides ", W.strides(), " now; give it a contiguous tensor for its .data");
  std::span<const Moment> moments = rule.rule().moments;
  while (s.moments.size() < moments.size()) s.moments.push_back(new_moment(i, moments[s.moments.size()]));
  for (std::size_t k = 0; k < moments.size(); ++k) follow(W, moments[k], s.moments[k]);
  if (info_of(weight_format_of(i)).has_rest && !s.low.defined()) {
    ScopedPurpose purpose(Purpose::state);
    s.low = zeros_of_rest(W, weight_format_of(i));
  }
}

void Optimizer::Impl::apply(std::size_t i, const Expression& G, const RuleStep& rule, UpdatesTogether* together) {
  ParameterState& s = state[i];
  Progress next = next_progress(i);
  std::span<const Moment> moments = rule.rule().moments;
  Format format = weight_format_of(i);
  Noise noise = {.seed = options.seed, .parameter = names[i], .step = s.progress.step};
  std::vector<RoundingCount> counts(options.count_rounding ? 1 + moments.size() : 0);
  if (has_memory(s.parameter))
    update_tensor({format, s.parameter, s.low}, noise, at::ArrayRef(s.moments).slice(0, moments.size()), G, rule,
                  options.exact, counts, together);
  if (!counts.empty()) add_rounding(i, format, moments, counts);
  s.progress = next;
  store(i);
}

void Optimizer::Impl::add_rounding(std::size_t i, Format format, std::span<const Moment> moments,
                                   std::span<const RoundingCount> counts) {
  rounding[{i, "weight", format}] += counts[0];
  for (std::size_t k = 0; k < moments.size(); ++k)
    if (moments[k].extent == Extent::element)
      rounding[{i, moments[k].key, state[i].moments[k].format}] += counts[1 + k];
}

// in_backward: consumes the gradient.
void Optimizer::Impl::update(std::size_t i) {
  auto alive = in_use();  // goes last, and this may go with it
  if (!alive || !holds(i)) return records[i]->release();
  load(i);
  RuleStep rule = rule_for(i);
  prepare(i, rule);
  try_memory(state[i].parameter, rule);
  apply(i, gradient_of(i).expression(), rule);
  records[i]->spend();
}

void Optimizer::Impl::step(const at::Tensor& factor) {
  std::scoped_lock lock(ledger->gradients_in_use);
  bool in_backward = options.schedule == Schedule::in_backward;
  // All are looked at, and all memory is there, before the first is applied: a step happens as a whole or not at all.
  struct Update {
    std::size_t i;
    WholeGradient gradient;
    RuleStep rule;
  };
  std::vector<Update> updates;
  for (std::size_t i = 0; i < state.size(); ++i) {
    if (in_backward && records[i] && records[i]->is_updated()) continue;
    WholeGradient G = gradient_of(i);
    if (G.empty()) continue;
    load(i);
    RuleStep rule = rule_for(i);
    prepare(i, rule);
    if (state[i].parameter.is_cpu()) reserve_workspace(G.expression());
    updates.push_back({i, std::move(G), rule});
  }
  for (const Update& update : updates) try_memory(state[update.i].parameter, update.rule);
  UpdatesTogether together;
  for (const auto& [i, gradient, rule] : updates) {
    Scale scale = gradient.scale();
    if (factor.defined()) scale.mul_(factor, state[i].parameter.device());
    apply(i, scale.of(gradient.expression()), rule, &together);
  }
  together.run();
  for (const Update& update : updates)
    if (records[update.i] && update.gradient.is_ordinary()) records[update.i]->note_applied_ordinary();
  for (auto& record : records)
    if (record) record->end_step();
  ledger->note_step();
  ledger->gram() = {};
  release_workspace();
}

// ---- The public class ---------------------------------------------------------------------------------------------

Optimizer::Optimizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Optimizer::~Optimizer() = default;

void Optimizer::check_held() const {
  check(!impl_->state.empty(), "Optimizer: there is no parameter");
  bool any_bf16 = std::any_of(impl_->state.begin(), impl_->state.end(),
                              [](const ParameterState& s) { return s.parameter.scalar_type() == at::kBFloat16; });
  check(any_bf16 || impl_->options.weight_format == Format::bf16, "Optimizer: weight_format is ",
        name_of(impl_->options.weight_format),
        ", which is for bf16 weights, and no parameter is bf16; convert the model "
        "first (model.bfloat16()), or leave weight_format out");
}

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
  Ledger::Figures figures = ledger.figures();
  return {.held_terms = value(figures.terms),
          .dense_matrices = value(figures.dense_matrices),
          .dense_vectors = value(figures.dense_vectors),
          .gradients = value(figures.gradients)};
}

}  // namespace

MemoryReport Optimizer::memory() const {
  std::scoped_lock lock(impl_->ledger->gradients_in_use);
  for (auto& record : impl_->records)
    if (record) record->note_grad();
  MemoryReport r = report(*impl_->ledger, [](const Bytes& b) { return b.now(); });
  for (const ParameterState& s : impl_->state) {
    r.weights += static_cast<std::int64_t>(s.parameter.nbytes() + (s.low.defined() ? s.low.nbytes() : 0));
    for (const StoredTensor& moment : s.moments) r.state += moment.bytes();
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

void Optimizer::reset_peak_memory() { impl_->ledger->reset_peaks(); }

RoundingReport Optimizer::rounding() const {
  check(impl_->options.count_rounding, "rounding: it is not counted; give the optimizer count_rounding");
  return {impl_->rounding, impl_->ledger->figures().skipped_steps};
}

std::vector<OrdinaryGradients> Optimizer::ordinary_gradients() const {
  std::scoped_lock lock(impl_->ledger->gradients_in_use);
  std::vector<OrdinaryGradients> all;
  for (std::size_t i = 0; i < impl_->records.size(); ++i)
    if (const auto& record = impl_->records[i])
      for (const auto& [reason, times] : record->ordinary()) all.push_back({i, reason, times});
  return all;
}

std::optional<std::size_t> Optimizer::not_finite() const {
  std::scoped_lock lock(impl_->ledger->gradients_in_use);
  for (std::size_t i = 0; i < impl_->records.size(); ++i)
    if (const auto& record = impl_->records[i])
      if (impl_->ledger->is_not_finite(record->current().get())) return i;
  return std::nullopt;
}

Progress progress_of(const OptimizerInfo& rule, const ParameterState& state) {
  Progress progress = state.progress;
  if (!rule.counts_steps) progress.step = state.moments.empty() ? 1 : 2;
  return progress;
}

GroupedOptimizer::GroupedOptimizer(const OptimizerInfo& rule, OptimizerOptions options)
    : Optimizer(std::make_unique<LocalImpl>(
          std::move(options),
          [this](std::size_t group, const ParameterState& s) {
            return rule_.prepare(values(group), progress_of(rule_, s));
          },
          [this](std::size_t group, const Progress& p) { return rule_.next(values(group), p); })),
      rule_(rule) {}

void GroupedOptimizer::hold_group(const std::vector<at::Tensor>& params, std::size_t group,
                                  std::optional<Format> state_format) {
  RuleStep first = rule_.prepare(values(group), {});  // refuses options out of range now, not at the first step
  auto& impl = static_cast<LocalImpl&>(*impl_);
  for (const at::Tensor& parameter : params) {
    impl.hold(parameter, std::to_string(impl.state.size()), state_format, first.rule());
    impl.group_of.push_back(group);
  }
}

}  // namespace forge
