#pragma once

#include <span>
#include <string>

#include "forge/formats/format.h"
#include "forge/gradient/terms.h"
#include "forge/rules/list.h"

namespace forge::cuda {

// What multiplies: fp32 multiply-adds in the order of Target::ref, or tensor cores.
enum class Multiplier : std::uint8_t { ffma, mma };

// How an update runs. A pure function of what it works on.
struct KernelConfig {
  Multiplier multiplier = Multiplier::ffma;
  bool fused = true;  // else materialize and update_rows
};

// Whether tensor cores can make G: products of two matrices of one 16-bit type whose term has no factor of its own, and
// dense terms.
bool can_multiply_halves(const Expression& G);

// Whether update_rows has the rule: every one of the list.
bool has_kernel(const RuleInfo& rule);

// Whether there is a kernel that makes G's tiles and updates with them.
bool is_fused(const RuleInfo& rule, const Stored& W, std::span<const Stored> S);

// exact: fp32 multiply-adds only.
Multiplier choose_multiplier(const Expression& G, bool exact);
KernelConfig choose_kernel(const RuleInfo& rule, const Stored& W, std::span<const Stored> S, const Expression& G,
                           bool exact);

// "fused, tensor cores".
std::string to_string(const KernelConfig& config);

}  // namespace forge::cuda
