#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "forge/base/error.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/whole_gradient.h"

namespace forge {
namespace {

void check_schedule(const char* who, const at::Tensor& parameter, const Record* record) {
  check(record == nullptr || !record->in_backward(), who, ": the parameter of shape ", parameter.sizes(),
        " is updated in backward, so this backward's update was applied unclipped; use the schedule at_step to clip");
}

struct Gradients {
  std::vector<WholeGradient> all;
  at::Tensor sum;  // of all squares

  Gradients(const char* who, const std::vector<at::Tensor>& params) {
    std::vector<std::shared_ptr<Record>> records;
    for (const at::Tensor& p : params) {
      check(p.defined(), who, ": a parameter is undefined");
      check_schedule(who, p, records.emplace_back(find_record(p)).get());
    }
    for (std::size_t i = 0; i < params.size(); ++i) {
      WholeGradient G(params[i], records[i].get());
      if (G.empty()) continue;
      add(G.sum_squares(!records[i] || records[i]->exact()));
      all.push_back(std::move(G));
    }
  }
  at::Tensor norm() const { return sum.defined() ? sum.sqrt() : at::zeros({}, at::kDouble); }

 private:
  // One after the other, on every device.
  void add(const at::Tensor& of_one) { sum = sum.defined() ? sum.add(of_one.to(sum.device())) : of_one; }
};

}  // namespace

at::Tensor grad_norm(const std::vector<at::Tensor>& params) { return Gradients("grad_norm", params).norm(); }

at::Tensor clip_grad_norm_(const std::vector<at::Tensor>& params, double max_norm, bool error_if_nonfinite) {
  Gradients gradients("clip_grad_norm_", params);
  at::Tensor norm = gradients.norm();
  if (error_if_nonfinite) {
    const auto found = norm.item<double>();
    check(std::isfinite(found), "clip_grad_norm_: the norm of the gradients is ", found, "; nothing was scaled");
  }
  at::Tensor coefficient = at::full_like(norm, max_norm).div_(norm.add(1e-6)).clamp_max_(1);  // a NaN goes through
  for (WholeGradient& G : gradients.all) G.mul_(coefficient);
  return norm;
}

}  // namespace forge
