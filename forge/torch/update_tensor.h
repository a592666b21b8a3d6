#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "forge/gradient/terms.h"
#include "forge/kernels/rounding.h"
#include "forge/rules/list.h"
#include "forge/torch/stored_tensor.h"

namespace forge {

// W, S ← Rule(W, S, G) on contiguous tensors, through the fused kernel, in all passes that the rule takes. Moments are
// of the weight's shape or as sizes_of_moment (stored_tensor.h) has them. A direction that is to be orthogonal is one
// fp32 matrix of the weight's shape, which lives until this returns. The version counters of what is written move, so
// that autograd notices a later use of what it saved. exact: as Place has it. rounding: as the kernel has it.
void update_tensor(const StoredTensor& weight, const Noise& noise, at::ArrayRef<StoredTensor> moments,
                   const Expression& G, const RuleStep& rule, bool exact = false,
                   std::span<RoundingCount> rounding = {});

}  // namespace forge
