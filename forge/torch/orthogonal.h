#pragma once

#include <ATen/core/Tensor.h>

#include "forge/rules/rule.h"

namespace forge {

// X ← nearly its orthogonal factor: UVᵀ of X = UΣVᵀ, with singular values between 0.7 and 1.2 in the usual five steps
// (rules/muon.h). X: (m, n), fp32, contiguous. The iteration runs in fp32, on the transpose where m > n, and takes
// m · n + 2 min(m, n)² numbers beside X. torch.optim.Muon runs it in bf16, and so differs by some per cent.
void orthogonalize_(const at::Tensor& X, const NewtonSchulz& iteration);

}  // namespace forge
