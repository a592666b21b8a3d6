#pragma once

#include <span>

#include "forge/formats/format.h"
#include "forge/gradient/terms.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/rules/list.h"

// Hopper's own kernels (sm_90a): a gradient that is one product of two bf16 matrices, loaded by TMA and multiplied by
// wgmma. choose_kernel does not choose them yet: what their place is among the others is for a measurement to say.
// Sums are the hardware's as in mma.cuh, but in steps of their own, so that bits are not those of the other kernels;
// fused and stored tiles have the same. All throw Error before anything is launched where arguments do not fit, and
// where the device is none of compute capability 9.0.
namespace forge::cuda {

// Whether the device that the host's thread has chosen is one of compute capability 9.0.
bool is_hopper();
// Whether G is one Outer term without a factor of its own, of two bf16 matrices with rows on multiples of 16 bytes and
// at least one token.
bool can_multiply_on_hopper(const Expression& G);
// That, and there is a kernel for the rule and the formats.
bool can_update_on_hopper(const RuleInfo& rule, const Stored& W, std::span<const Stored> S, const Expression& G);

// As update and materialize of launch.h.
void update_on_hopper(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                      const Launch& launch);
void materialize_on_hopper(const Matrix& D, const Expression& G, const Launch& launch);

}  // namespace forge::cuda
