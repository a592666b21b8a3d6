// The operators torch.ops.forge.*: the door for Python. Each checks its inputs before it writes.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <vector>

#include "forge/base/error.h"
#include "forge/torch/functional.h"
#include "forge/torch/gradient.h"
#include "forge/torch/matrix_view.h"
#include "forge/torch/update_tensor.h"

namespace forge {
namespace {

void check_output(const char* who, const char* what, const at::Tensor& t, at::IntArrayRef sizes) {
  check_stored(who, what, t);
  check(t.is_contiguous(), who, ": ", what, " has strides ", t.strides(), "; make it contiguous");
  check(t.sizes() == sizes, who, ": ", what, " is ", t.sizes(), ", expected ", sizes);
}

void check_pairs(const char* who, at::TensorList dY, at::TensorList X) {
  check(dY.size() == X.size(), who, ": there are ", dY.size(), " dY and ", X.size(), " X; they come in pairs");
}

void add_terms(Gradient& G, const char* who, at::TensorList dY, at::TensorList X, double scale) {
  check_pairs(who, dY, X);
  G.set_policy(Collapse::never, /*exact=*/false);
  for (std::size_t i = 0; i < dY.size(); ++i) G.add_outer(dY[i], X[i]);
  G.mul_(scale);
}

// The gradient of a weight whose shape only the terms tell.
std::unique_ptr<Gradient> gradient_of_terms(const char* who, at::TensorList dY, at::TensorList X, double scale) {
  check_pairs(who, dY, X);
  check(!dY.empty(), who, ": there is no term, so the shape is not known");
  check_operand(who, "dY", dY[0]);
  check_operand(who, "X", X[0]);
  check(dY[0].dim() == 2 && X[0].dim() == 2, who, ": dY is ", dY[0].sizes(), " and X ", X[0].sizes(),
        ", expected (T, out) and (T, in)");
  auto G = std::make_unique<Gradient>(at::IntArrayRef{dY[0].size(1), X[0].size(1)}, at::kFloat, dY[0].device());
  add_terms(*G, who, dY, X, scale);
  return G;
}

void step(const char* who, const at::Tensor& weight, const std::vector<at::Tensor>& moments, at::TensorList dY,
          at::TensorList X, double scale, const RuleStep& rule) {
  check_output(who, "weight", weight, weight.sizes());
  for (const at::Tensor& moment : moments) {
    check_output(who, "a moment", moment, weight.sizes());
    check(moment.scalar_type() == moments[0].scalar_type(), who, ": the moments are ", moments[0].scalar_type(),
          " and ", moment.scalar_type(), "; they need one dtype");
  }
  Gradient G(weight);
  add_terms(G, who, dY, X, scale);
  std::vector<StoredTensor> stored(moments.begin(), moments.end());
  update_tensor(weight, {}, stored, G.expression(), rule);
}

void adamw_step_(const at::Tensor& weight, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq, at::TensorList dY,
                 at::TensorList X, std::int64_t step_count, double lr, double beta1, double beta2, double eps,
                 double weight_decay, bool maximize, double scale) {
  AdamWOptions options{
      .lr = lr, .beta1 = beta1, .beta2 = beta2, .eps = eps, .weight_decay = weight_decay, .maximize = maximize};
  step("adamw_step_", weight, {exp_avg, exp_avg_sq}, dY, X, scale,
       OptimizingOf<AdamWOptions>::prepare(options, step_count));
}

void sgd_step_(const at::Tensor& weight, const std::optional<at::Tensor>& momentum_buffer, at::TensorList dY,
               at::TensorList X, std::int64_t step_count, double lr, double momentum, double dampening,
               double weight_decay, bool nesterov, bool maximize, double scale) {
  bool has_buffer = momentum_buffer && momentum_buffer->defined();
  check(has_buffer == (momentum != 0), "sgd_step_: momentum is ", momentum, has_buffer ? " and a" : " and no",
        " momentum_buffer is given");
  SgdOptions options{lr, momentum, dampening, weight_decay, nesterov, maximize};
  std::vector<at::Tensor> moments;
  if (has_buffer) moments.push_back(*momentum_buffer);
  step("sgd_step_", weight, moments, dY, X, scale, OptimizingOf<SgdOptions>::prepare(options, step_count));
}

at::Tensor materialize_terms(at::TensorList dY, at::TensorList X, double scale) {
  return gradient_of_terms("materialize", dY, X, scale)->materialize();
}

double sum_squares_of_terms(at::TensorList dY, at::TensorList X, double scale, bool exact) {
  return gradient_of_terms("sum_squares", dY, X, scale)->sum_squares(exact).item<double>();
}

at::Tensor embedding_op(const at::Tensor& index, const at::Tensor& weight, std::int64_t padding_idx) {
  return forge::embedding(index, weight, padding_idx);
}

}  // namespace
}  // namespace forge

TORCH_LIBRARY(forge, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", &forge::linear);
  m.def("linear_transposed(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", &forge::linear_transposed);
  m.def("embedding(Tensor index, Tensor weight, int padding_idx=-1) -> Tensor", &forge::embedding_op);
  m.def(
      "adamw_step_(Tensor(a!) weight, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor[] dY, Tensor[] X, *, "
      "int step, float lr, float beta1, float beta2, float eps, float weight_decay, bool maximize=False, "
      "float scale=1.0) -> ()");
  m.def(
      "sgd_step_(Tensor(a!) weight, Tensor(b!)? momentum_buffer, Tensor[] dY, Tensor[] X, *, int step, float lr, "
      "float momentum=0.0, float dampening=0.0, float weight_decay=0.0, bool nesterov=False, bool maximize=False, "
      "float scale=1.0) -> ()");
  m.def("materialize(Tensor[] dY, Tensor[] X, *, float scale=1.0) -> Tensor");
  m.def("sum_squares(Tensor[] dY, Tensor[] X, *, float scale=1.0, bool exact=False) -> float");
}

// For every device, so that what is not on the CPU gets our sentence.
TORCH_LIBRARY_IMPL(forge, CompositeExplicitAutograd, m) {
  m.impl("adamw_step_", &forge::adamw_step_);
  m.impl("sgd_step_", &forge::sgd_step_);
  m.impl("materialize", &forge::materialize_terms);
  m.impl("sum_squares", &forge::sum_squares_of_terms);
}
