#include "apps/forge/trainer.h"

#include <cmath>
#include <utility>

#include "forge/base/error.h"

namespace forge::app {
namespace {

std::vector<ParamGroup<RuleValues>> decay_groups(std::vector<at::Tensor> matrices, std::vector<at::Tensor> vectors,
                                                 const RuleValues& values) {
  RuleValues plain = values;
  if (plain.contains("weight_decay")) plain["weight_decay"] = 0;
  return {{.params = std::move(matrices), .options = values}, {.params = std::move(vectors), .options = plain}};
}

}  // namespace

void validate(const TrainerOptions& options) {
  if (options.optimizer.schedule == Schedule::at_step) return;
  check(options.clip == 0,
        "--clip: the norm of the whole gradient is known only after backward, and --schedule "
        "in_backward has updated by then; give --clip 0 or --schedule at_step");
  check(options.accumulation == 1,
        "--accumulation: --schedule in_backward updates in every backward; give "
        "--accumulation 1 with a larger --batch, or --schedule at_step");
  check(options.optimizer.collapse != Collapse::always,
        "--no-fuse keeps every gradient until the step, which "
        "--schedule in_backward does not; give one of the two");
}

Trainer::Trainer(const Llama& model, const TrainerOptions& options) : model_(model), options_(options) {
  validate(options);
  std::vector<at::Tensor> matrices, vectors;
  for (const auto& [name, tensor] : model.parameters()) {
    (tensor.dim() == 2 ? matrices : vectors).push_back(tensor);
    parameters_.push_back(tensor);
  }
  optimizer_ = make_optimizer(options_.rule, decay_groups(std::move(matrices), std::move(vectors), options_.values),
                              options_.optimizer);
}

StepResult Trainer::step(const std::vector<at::Tensor>& micro_batches, double lr) {
  ++steps_;
  optimizer_->reset_peak_memory();
  optimizer_->set_lr(lr);
  StepResult result;
  result.loss = accumulate(micro_batches);
  result.norm = options_.clip > 0 ? clip() : 0;
  optimizer_->step();
  result.memory = optimizer_->peak_memory();
  if (options_.optimizer.count_rounding) result.rounding = new_rounding();
  optimizer_->zero_grad();
  return result;
}

double Trainer::accumulate(const std::vector<at::Tensor>& micro_batches) {
  double total = 0;
  const auto count = static_cast<double>(micro_batches.size());
  for (const at::Tensor& windows : micro_batches) {
    const at::Tensor loss = model_.loss(windows).div(count);
    const double value = loss.item<double>();
    check(std::isfinite(value), "the loss is ", value, " at step ", steps_,
          "; nothing is written. A smaller --lr, a longer --warmup or --clip 1 helps; so does --weights fp32");
    total += value;
    loss.backward();
  }
  return total;
}

Rounding Trainer::new_rounding() {
  const RoundingReport report = optimizer_->rounding();
  const Rounding before = std::exchange(rounding_, {report.of_weights(), report.of_moments()});
  return {rounding_.weights - before.weights, rounding_.moments - before.moments};
}

double Trainer::clip() {
  const double norm = clip_grad_norm_(parameters_, options_.clip).item<double>();
  check(std::isfinite(norm), "the gradient's norm is ", norm, " at step ", steps_,
        "; nothing is written. A smaller --lr or a longer --warmup helps; so does --weights fp32");
  return norm;
}

}  // namespace forge::app
