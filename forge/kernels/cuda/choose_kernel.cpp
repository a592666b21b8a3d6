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

bool has_kernel(const RuleInfo& rule) {
  bool listed = false;
  RuleList::for_each([&]<class Rule>() { listed = listed || rule.id == kRuleInfo<Rule>.id; });
  return listed;
}

bool is_fused(const RuleInfo& rule, const Stored& W, std::span<const Stored> S) {
  bool found = false;
  for_each_fused([&]<class Rule, Format kWeight, Format kState>() {
    found = found || is_instance<Rule, kWeight, kState>(rule, W, S);
  });
  return found;
}

Multiplier choose_multiplier(const Expression& G, bool exact) {
  return !exact && can_multiply_halves(G) ? Multiplier::mma : Multiplier::ffma;
}

KernelConfig choose_kernel(const RuleInfo& rule, const Stored& W, std::span<const Stored> S, const Expression& G,
                           bool exact) {
  return {.multiplier = choose_multiplier(G, exact), .fused = is_fused(rule, W, S)};
}

std::string to_string(const KernelConfig& config) {
  return std::string(config.fused ? "fused" : "two-phase") +
         (config.multiplier == Multiplier::mma ? ", tensor cores" : ", fp32 multiply-adds");
}

}  // namespace forge::cuda
