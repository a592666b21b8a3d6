#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace forge {

// torch's own operators aten::linear, aten::matmul and aten::embedding record: where an optimizer of this library holds
// the weight, their backward writes (dY, X), or (index, dY), to gradient(weight) and no dW is computed. So at::linear,
// torch::nn::Linear, torch.nn.functional.linear and @ need no other name here. The weight is recognised behind a
// transpose and behind a cast (autocast's or the user's). torch's ordinary path is taken where it is no contiguous leaf
// of fp32 or bf16, where its gradient is to be a tensor (Record::record_outer says when), under function transforms,
// and for tensors of another kind than plain dense ones.

// y = x Wᵀ + b: x (…, in), weight (out, in), bias (out), y (…, out).
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {});

// y = x W + b for a weight of (in, out), as GPT-2's Conv1D has it.
at::Tensor linear_transposed(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {});

// Rows of the weight: index (…) int64 or int32, weight (n, d), result (…, d). Tokens equal to padding_idx (where >= 0)
// contribute nothing to the gradient.
at::Tensor embedding(const at::Tensor& index, const at::Tensor& weight, std::int64_t padding_idx = -1);

}  // namespace forge
