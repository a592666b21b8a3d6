#include "forge/kernels/update.h"

#include "forge/kernels/check.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

Sums update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Context& context, std::span<RoundingCount> rounding) {
  validate("update", G);
  check_weight("update", W, S, G.out, G.in, rule);
  check(rounding.empty() || rounding.size() == 1 + S.size(), "update: rounding has ", rounding.size(),
        " counts, expected one for W and one for each of ", S.size(), " moments, or none");
  check_context("update", G, context);
  const Expression none = {G.out, G.in, {}};
  auto run = context.target == Target::ref ? ref::update : cpu::update;
  return run(W, S, rule.rule().reads_gradient ? G : none, rule, context, rounding);
}

}  // namespace forge
