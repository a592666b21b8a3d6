// Where torch's operators reach this library.
#include "forge/torch/dispatch.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>

#include "forge/torch/functional.h"

namespace forge {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return at::linear(x, weight, bias);
}

at::Tensor linear_transposed(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return at::linear(x, weight.t(), bias);
}

at::Tensor embedding(const at::Tensor& index, const at::Tensor& weight, std::int64_t padding_idx) {
  return at::embedding(weight, index, padding_idx);
}

namespace {

void put_before_torch(torch::Library& m) {
  put_before_linear(m);
  put_before_embedding(m);
}

}  // namespace
}  // namespace forge

TORCH_LIBRARY_IMPL(aten, AutogradCPU, m) { forge::put_before_torch(m); }
TORCH_LIBRARY_IMPL(aten, AutogradCUDA, m) { forge::put_before_torch(m); }
