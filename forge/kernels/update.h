#pragma once

#include <span>

#include "forge/formats/format.h"
#include "forge/kernels/rounding.h"
#include "forge/kernels/target.h"
#include "forge/rules/list.h"

namespace forge {

// The fused kernel:  W, S ← Rule(W, S, G),  G = scale · Σ sᵢ · termᵢ  (gradient/terms.h).
//
// W (out, in) and S, the rule's moments in its order, each (out, in): each in a format of its own (formats/format.h),
// any row stride; a moment of rows (out, 1) or of columns (1, in) in fp32. W and S are overwritten; the terms are read;
// none of them may overlap W or S. Moments that are all zeros are those of a weight that has not been updated.
// An empty G (no term, or no token) is a zero gradient: the update happens. Tiles of G live in the workspace only.
// The bits of W and S do not depend on the target, the number of workers or any tile size (contract 2), and equal
// materialize(G) into fp32 followed by update with that Dense term (contract 1).
// Stochastic rounding takes its bits from the element's place and step alone (base/noise.h, contract 5); a shard of a
// weight in a format with blocks begins at a multiple of kBlockColumns.
// Returns the sums of a pass of several (rules/rule.h), added in the order of norm_lanes.h: their bits, too, depend on
// nothing else. What a rule says that it leaves alone is not written; G is its shape alone where it is not read.
// `rounding` is empty, or has one count for W and one for each of S, to which what this update writes is added; that
// takes time and changes no bit of W and S. Counts are as independent of target, workers and tiles as the bits are.
// Throws Error before anything is written where shapes, formats, the number of moments or counts, or the workspace do
// not fit.
Sums update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Context& context, std::span<RoundingCount> rounding = {});

}  // namespace forge
