#pragma once

#include "forge/kernels/target.h"

namespace forge {

// D ← G: the gradient multiplied out, D (out, in), fp32 or bf16 (rounded to nearest even), any row stride. Same tiles,
// same order and so the same bits as what update consumes. D is overwritten; it may not overlap a term, except that
// it may be exactly the D of a first Dense term of its own dtype (a chain continued in place).
// Throws Error before anything is written where shapes or the workspace do not fit.
void materialize(const Matrix& D, const Expression& G, const Context& context);

}  // namespace forge
