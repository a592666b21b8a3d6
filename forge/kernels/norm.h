#pragma once

#include "forge/kernels/target.h"

namespace forge {

// ‖G‖²: the fp64 sum of the squares of G's fp32 elements, in an order of its own that is fixed by the shape alone, so
// its bits do not depend on the target, the workers or the tiles, and equal those of the materialized G.
// It is finite exactly where every element of G is (an fp32 squared does not overflow fp64): the finite check.
// Throws Error where shapes or the workspace do not fit.
double sum_squares(const Expression& G, const Context& context);

}  // namespace forge
