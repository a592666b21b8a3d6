#include <cmath>
#include <utility>

#include "forge/base/error.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/record.h"

namespace forge {
namespace {

void check_schedule(const at::Tensor& parameter, const Record* record) {
  check(record == nullptr || !record->in_backward(), "clip_grad_norm_: the parameter of shape ", parameter.sizes(),
        " is updated in backward, so this backward's update was applied unclipped; use the schedule at_step to clip");
}

}  // namespace

double clip_grad_norm_(const std::vector<at::Tensor>& params, double max_norm, bool error_if_nonfinite) {
  std::vector<std::shared_ptr<Record>> records;
  for (const at::Tensor& p : params) {
    check(p.defined(), "clip_grad_norm_: a parameter is undefined");
    check_schedule(p, records.emplace_back(find_record(p)).get());
  }

  std::vector<WholeGradient> gradients;
  double sum = 0;
  for (std::size_t i = 0; i < params.size(); ++i) {
    WholeGradient G(params[i], records[i].get());
    if (G.empty()) continue;
    sum += G.sum_squares(!records[i] || records[i]->exact());
    gradients.push_back(std::move(G));
  }

  double norm = std::sqrt(sum);
  check(!error_if_nonfinite || std::isfinite(norm), "clip_grad_norm_: the norm of the gradients is ", norm,
        "; nothing was scaled");
  double coefficient = max_norm / (norm + 1e-6);
  // Not std::min: a NaN goes through, as in torch.
  if (coefficient > 1) coefficient = 1;
  for (WholeGradient& G : gradients) G.mul_(coefficient);
  return norm;
}

}  // namespace forge
