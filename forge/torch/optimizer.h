#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "forge/rules/registry.h"
#include "forge/torch/gradient.h"
#include "forge/torch/options.h"
#include "forge/torch/rounding_report.h"
#include "forge/torch/stored_tensor.h"

namespace forge {

// One parameter with its state. A parameter that has not been updated yet has no moments.
struct ParameterState {
  at::Tensor parameter;
  at::Tensor low;  // what weight_format keeps beside a bf16 parameter; undefined before the first update
  std::vector<StoredTensor> moments;  // in the order of the rule's
  Progress progress;                  // of the next update
};

// Where a parameter's next update is; where steps are not counted, its moments tell the first.
Progress progress_of(const OptimizerInfo& rule, const ParameterState& state);

// What an optimizer holds at this moment, in bytes.
struct MemoryReport {
  std::int64_t weights = 0;
  std::int64_t state = 0;
  std::int64_t held_terms = 0;      // storages kept alive by dY and X, each counted once
  std::int64_t dense_matrices = 0;  // dense gradients of 2-D parameters
  std::int64_t dense_vectors = 0;   // dense gradients of the rest (norms, biases)
  std::int64_t gradients = 0;       // the last three together; their peak is one moment's
  std::int64_t collapses = 0;       // times that terms were multiplied out
};

// How often a matrix got an ordinary gradient, which is stored, and why.
struct OrdinaryGradients {
  std::size_t parameter;  // its place in state()
  std::string reason;
  std::int64_t times;
};

// The loop of torch.optim: zero_grad(), forward, backward (any number of times), clip_grad_norm_, step().
// Holds each parameter once; matrices used through forge::linear and forge::embedding are never given a dense
// gradient below break-even; everything else comes through autograd's .grad and takes the same rule.
class Optimizer {
 public:
  struct Impl;  // optimizer_impl.h

  virtual ~Optimizer();
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // at_step: updates every parameter that has a gradient; gradients stay until zero_grad(), as in torch.
  // in_backward: the updates have happened; this closes the step. A second backward before step() raises.
  void step();
  // Drops every gradient, recorded or in .grad.
  void zero_grad();

  std::span<const ParameterState> state() const;
  const OptimizerOptions& options() const;
  MemoryReport memory() const;
  // The highest values of held_terms, dense_matrices, dense_vectors and gradients since the last reset.
  MemoryReport peak_memory() const;
  void reset_peak_memory();
  // Of all updates so far. Throws Error without OptimizerOptions::count_rounding.
  RoundingReport rounding() const;
  std::vector<OrdinaryGradients> ordinary_gradients() const;
  // The place in state() of the parameter whose gradient was the first to be found not finite since the last step, by a
  // norm or a finite check, where it is a recorded one and still there.
  std::optional<std::size_t> not_finite() const;

 protected:
  explicit Optimizer(std::unique_ptr<Impl> impl);
  // Throws Error where nothing is held, or no parameter can have a format that was asked for.
  void check_held() const;

  std::unique_ptr<Impl> impl_;
};

// An optimizer that has its groups of parameters itself.
class GroupedOptimizer : public Optimizer {
 public:
  // The learning rate of all groups.
  virtual void set_lr(double lr) = 0;

 protected:
  GroupedOptimizer(const OptimizerInfo& rule, OptimizerOptions options);
  // Refuses options of the group that are out of range now, not at the first step.
  void hold_group(const std::vector<at::Tensor>& params, std::size_t group, std::optional<Format> state_format);
  // A group's options as OptimizerInfo has them, at this moment.
  virtual std::vector<double> values(std::size_t group) const = 0;

 private:
  const OptimizerInfo& rule_;
};

// Parameters that share options.
template <class RuleOptions>
struct ParamGroup {
  std::vector<at::Tensor> params;
  RuleOptions options = {};
  // For all moments of these parameters, small ones and embeddings too; none: as OptimizerOptions say.
  std::optional<Format> state_format = std::nullopt;
};

// An optimizer of the registry (rules/registry.h) by its options. A change of groups()[i].options acts at the next
// update. Throws Error where a parameter is given twice, is no leaf that requires a gradient, is not fp32 or bf16, is
// on a device without kernels or without this rule's, has several elements in one place, or is held by another
// optimizer that is still alive; where an option is out of range, or a format is asked for that no parameter can have.
template <class RuleOptions>
class OptimizerOf final : public GroupedOptimizer {
 public:
  using Group = ParamGroup<RuleOptions>;
  explicit OptimizerOf(std::vector<at::Tensor> params, RuleOptions rule = {}, OptimizerOptions options = {})
      : OptimizerOf({Group{.params = std::move(params), .options = rule}}, std::move(options)) {}
  explicit OptimizerOf(std::vector<Group> groups, OptimizerOptions options = {})
      : GroupedOptimizer(find_optimizer(RuleOptions::kName), std::move(options)), groups_(std::move(groups)) {
    for (std::size_t i = 0; i < groups_.size(); ++i) hold_group(groups_[i].params, i, groups_[i].state_format);
    check_held();
  }

  std::vector<Group>& groups() { return groups_; }
  void set_lr(double lr) override {
    for (Group& group : groups_) group.options.lr = lr;
  }

 private:
  std::vector<double> values(std::size_t group) const override { return values_of(groups_[group].options); }

  std::vector<Group> groups_;
};

using SGD = OptimizerOf<SgdOptions>;
using Adam = OptimizerOf<AdamOptions>;
using AdamW = OptimizerOf<AdamWOptions>;
using NAdam = OptimizerOf<NAdamOptions>;
using RAdam = OptimizerOf<RAdamOptions>;
using Adamax = OptimizerOf<AdamaxOptions>;
using Adagrad = OptimizerOf<AdagradOptions>;
using Adadelta = OptimizerOf<AdadeltaOptions>;
using RMSprop = OptimizerOf<RMSpropOptions>;
using Rprop = OptimizerOf<RpropOptions>;
using ASGD = OptimizerOf<AsgdOptions>;
using Lion = OptimizerOf<LionOptions>;
using Signum = OptimizerOf<SignumOptions>;
using Adan = OptimizerOf<AdanOptions>;
using AdEMAMix = OptimizerOf<AdEMAMixOptions>;
using ADOPT = OptimizerOf<AdoptOptions>;
using ScheduleFreeAdamW = OptimizerOf<ScheduleFreeAdamWOptions>;
using ScheduleFreeSGD = OptimizerOf<ScheduleFreeSGDOptions>;
using SophiaG = OptimizerOf<SophiaGOptions>;
using MARS = OptimizerOf<MarsOptions>;
using Grams = OptimizerOf<GramsOptions>;
using CautiousAdamW = OptimizerOf<CautiousAdamWOptions>;
using StableAdamW = OptimizerOf<StableAdamWOptions>;
using LAMB = OptimizerOf<LambOptions>;
using Muon = OptimizerOf<MuonOptions>;
using Adafactor = OptimizerOf<AdafactorOptions>;
using AdaLomo = OptimizerOf<AdaLomoOptions>;

// ‖G‖ over all parameters that have a gradient, one number in fp64 on the device of the first of them; where none has,
// 0 on the CPU. Of parameters on several devices the host waits for those that are not on that of the sum.
at::Tensor grad_norm(const std::vector<at::Tensor>& params);

// grad_norm, by which each gradient's scale is multiplied: min(1, max_norm / (norm + 1e-6)), as
// torch.nn.utils.clip_grad_norm_ does. Returns the norm before clipping. The host waits for no device, unless
// error_if_nonfinite: then a norm that is not finite throws, which otherwise leaves the gradients unchanged in their
// terms (the product carries it). Both throw Error where a parameter is updated in_backward: this backward's update was
// applied unclipped.
at::Tensor clip_grad_norm_(const std::vector<at::Tensor>& params, double max_norm, bool error_if_nonfinite = false);

}  // namespace forge
