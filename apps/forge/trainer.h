#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/forge/llama.h"
#include "forge/torch/make_optimizer.h"

namespace forge::app {

struct TrainerOptions {
  std::string rule = "adamw";  // a name of the registry
  RuleValues values = {{"weight_decay", 0.1}, {"beta2", 0.95}};
  OptimizerOptions optimizer;
  double clip = 0;  // largest norm of the whole gradient; 0: no clipping
  std::int64_t accumulation = 1;
};

// Throws Error where the options contradict each other.
void validate(const TrainerOptions& options);

// What rounding did to all weights and to all their moments.
struct Rounding {
  RoundingCount weights, moments;
};

struct StepResult {
  double loss = 0;
  double norm = 0;                   // of the whole gradient before clipping; 0 without clipping
  MemoryReport memory;               // the optimizer's peaks in this step
  std::optional<Rounding> rounding;  // in this step, where it is counted
};

// Steps of training on one model. Weight decay acts on matrices only; norms have none.
class Trainer {
 public:
  // Throws Error where the options contradict each other, as validate() does.
  Trainer(const Llama& model, const TrainerOptions& options);

  // One update from `accumulation` micro-batches of windows (B, S + 1): the loss is their mean, and no gradient is left
  // behind. Throws Error, with that micro-batch not yet propagated, where a loss is not finite.
  StepResult step(const std::vector<at::Tensor>& micro_batches, double lr);

  const Optimizer& optimizer() const { return *optimizer_; }

 private:
  double accumulate(const std::vector<at::Tensor>& micro_batches);
  double clip();
  Rounding new_rounding();

  const Llama& model_;
  TrainerOptions options_;
  std::vector<at::Tensor> parameters_;
  std::unique_ptr<GroupedOptimizer> optimizer_;
  std::int64_t steps_ = 0;
  Rounding rounding_;  // in all steps so far
};

}  // namespace forge::app
