#pragma once

#include <span>

#include "forge/kernels/target.h"
#include "forge/rules/list.h"

namespace forge {

// The fused kernel:  W, S ← Rule(W, S, G),  G = scale · Σ sᵢ · termᵢ  (gradient/terms.h).
//
// W (out, in), fp32 or bf16 (rounded to nearest even), any row stride. S: the rule's moments, each (out, in), all of
// one dtype, in the rule's order. W and S are overwritten; the terms are read; none of them may overlap W or S.
// An empty G (no term, or no token) is a zero gradient: the update happens. Tiles of G live in the workspace only.
// The bits of W and S do not depend on the target, the number of workers or any tile size (contract 2), and equal
// materialize(G) into fp32 followed by update with that Dense term (contract 1).
// Throws Error before anything is written where shapes, dtypes, the number of moments or the workspace do not fit.
void update(const Matrix& W, std::span<const Matrix> S, const Expression& G, const RuleStep& rule,
            const Context& context);

}  // namespace forge
