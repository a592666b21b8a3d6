#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace forge {

// y = x Wᵀ + b, as torch.nn.functional.linear: x (…, in), weight (out, in), bias (out), y (…, out). Where an optimizer
// of this library holds the weight, backward records (dY, X) in gradient(weight) and no dW is computed; otherwise this
// is at::linear. The weight's ordinary path is also taken where it is not a leaf, is not contiguous, has gradient
// hooks, or its .grad is an ordinary tensor already.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {});

// y = x W + b for a weight of (in, out), as GPT-2's Conv1D has it; the rest is as in linear.
at::Tensor linear_transposed(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {});

// Rows of the weight, as torch.nn.functional.embedding: index (…) int64, weight (n, d), result (…, d). Backward
// records (index, dY); tokens equal to padding_idx (where >= 0) contribute nothing.
at::Tensor embedding(const at::Tensor& index, const at::Tensor& weight, std::int64_t padding_idx = -1);

}  // namespace forge
