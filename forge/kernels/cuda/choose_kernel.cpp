#include "forge/kernels/cuda/choose_kernel.h"

#include <algorithm>
#include <variant>

#include "forge/kernels/cuda/instances.h"

namespace forge::cuda {
namespace {

bool can_multiply_halves(const Term& term) {
  if (const Outer* t = std::get_if<Outer>(&term))
    return t->scale == 1 && t->dY.dtype == t->X.dtype && (t->X.dtype == DType::bf16 || t->X.dtype == DType::f16);
  return std::holds_alternative<Dense>(term);
}

}  // namespace

bool can_multiply_halves(const Expression& G) {
  bool any = std::ranges::any_of(G.terms, [](const Term& t) { return std::holds_alternative<Outer>(t); });
  return any && std::ranges::all_of(G.terms, [](const Term& t) { return can_multiply_halves(t); });
}

bool is_fused(const RuleInfo& rule, const Stored& W, std::span<const Stored> S) {
  bool found = false;
  for_each_fused([&]<class Rule, Format kWeight, Format kState>() {
    bool all = std::ranges::all_of(S, [](const Stored& s) { return s.format == kState; });
    found = found || (rule.id == kRuleInfo<Rule>.id && W.format == kWeight && all);
  });
  return found;
}

KernelConfig choose_kernel(const RuleInfo& rule, const Stored& W, std::span<const Stored> S, const Expression& G,
                           bool exact) {
  return {.multiplier = !exact && can_multiply_halves(G) ? Multiplier::mma : Multiplier::ffma,
          .fused = is_fused(rule, W, S)};
}

std::string to_string(const KernelConfig& config) {
  return std::string(config.fused ? "fused" : "two-phase") +
         (config.multiplier == Multiplier::mma ? ", tensor cores" : ", fp32 multiply-adds");
}

}  // namespace forge::cuda
