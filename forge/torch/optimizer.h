#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "forge/rules/list.h"
#include "forge/torch/gradient.h"
#include "forge/torch/options.h"

namespace forge {

// One parameter with its state. A parameter that has not been updated yet has no moments.
struct ParameterState {
  at::Tensor parameter;
  std::vector<at::Tensor> moments;  // of the parameter's shape
  std::int64_t step = 0;            // updates so far
};

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

 protected:
  explicit Optimizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Parameters that share options.
template <class RuleOptions>
struct ParamGroup {
  std::vector<at::Tensor> params;
  RuleOptions options = {};
};

// An optimizer of one rule. A change of groups()[i].options acts at the next update.
// Throws Error where a parameter is given twice, is no leaf that requires a gradient, is not fp32 or bf16 on the CPU,
// has gaps between its elements, or is held by another optimizer that is still alive.
class AdamW final : public Optimizer {
 public:
  explicit AdamW(std::vector<at::Tensor> params, AdamWOptions rule = {}, OptimizerOptions options = {});
  explicit AdamW(std::vector<ParamGroup<AdamWOptions>> groups, OptimizerOptions options = {});
  ~AdamW() override;
  std::vector<ParamGroup<AdamWOptions>>& groups();
};

class SGD final : public Optimizer {
 public:
  explicit SGD(std::vector<at::Tensor> params, SgdOptions rule = {}, OptimizerOptions options = {});
  explicit SGD(std::vector<ParamGroup<SgdOptions>> groups, OptimizerOptions options = {});
  ~SGD() override;
  std::vector<ParamGroup<SgdOptions>>& groups();
};

// ‖G‖ over all parameters that have a gradient; each gradient's scale is multiplied by min(1, max_norm / (norm +
// 1e-6)), as torch.nn.utils.clip_grad_norm_ does. Returns the norm before clipping. A non-finite norm leaves the
// gradients unchanged in their terms (the product carries it) unless error_if_nonfinite, which throws. Throws Error
// where a parameter is updated in_backward: this backward's update was applied unclipped.
double clip_grad_norm_(const std::vector<at::Tensor>& params, double max_norm, bool error_if_nonfinite = false);

}  // namespace forge
