#pragma once

#include <cstdint>
#include <span>

#include "forge/formats/format.h"
#include "forge/kernels/target.h"
#include "forge/rules/list.h"

// What operations ask of their operands, on every device, checked before anything is written. All throw Error; `who`
// opens the sentence.
namespace forge {

// The context of an operation on the host.
void check_context(const char* who, const Expression& G, const Context& context);

// A weight of (out, in) with the moments of a rule.
void check_weight(const char* who, const Stored& W, std::span<const Stored> S, std::int64_t out, std::int64_t in,
                  const RuleStep& rule);

// What a gradient of G's shape is stored to.
void check_materialized(const char* who, const Matrix& D, const Expression& G);

}  // namespace forge
