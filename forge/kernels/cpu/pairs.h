#pragma once

#include <cstdint>

#include "forge/base/executor.h"
#include "forge/base/integers.h"
#include "forge/gradient/terms.h"

// Two tokens of bf16 at a time. VDPBF16PS does, with the two bf16 of each lane,
//
//   c ← fma(x₁, y₁, c)      the upper ones
//   c ← fma(x₀, y₀, c)      the lower ones
//
// two steps of a chain at the price of one (Intel's manual gives the order; the chain half asks the machine whether it
// rounds each step once, as fma does). But a denormal is zero to it, read or made. So it is for chains that meet none:
// a bf16 whose exponent field is e > 0 is a multiple of 2^(e − 134), so all products of a gradient, and all sums of
// them, are multiples of 2^(e_dY + e_X − 268), with the smallest fields of its factors; rounding makes a sum's step
// only coarser. From e_dY + e_X = 142 on that is 2⁻¹²⁶ at least, and what is not zero is normal.
namespace forge::cpu {

// Whether G's chains, two tokens at a time, have the bits that they have one by one: the terms have to be bf16, too,
// and nothing to come before them. Reads dY and X once.
bool is_exact_in_pairs(const Expression& G, Executor& executor);

// The steps of an Outer term's chain: the pair of a last token alone is filled up with what adds nothing.
inline std::int64_t pairs_of(const Outer& outer) { return ceil_div(outer.X.rows, 2); }

}  // namespace forge::cpu
