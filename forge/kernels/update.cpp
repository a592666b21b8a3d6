#include "forge/kernels/update.h"

#include "forge/kernels/check.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

Sums update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Context& context, std::span<RoundingCount> rounding) {
  validate("update", G);
  check_stored("update", "W", W, G.out, G.in);
  check(info_of(W.format).for_weights, "update: W is ", name_of(W.format), ", which is a format for moments");
  std::span<const Moment> moments = rule.rule().moments;
  check(S.size() == moments.size(), "update: ", rule.name(), " keeps ", moments.size(), " moments, got ", S.size());
  for (std::size_t k = 0; k < S.size(); ++k) {
    check_stored("update", moments[k].key, S[k], moments[k].rows(G.out), moments[k].cols(G.in), moments[k].sign);
    check(moments[k].extent == Extent::element || S[k].format == Format::fp32, "update: ", moments[k].key, " is ",
          name_of(S[k].format), "; a number for a row or a column is fp32");
    check(info_of(S[k].format).for_moments, "update: ", moments[k].key, " is ", name_of(S[k].format),
          ", which is a format for weights");
  }
  check(rounding.empty() || rounding.size() == 1 + S.size(), "update: rounding has ", rounding.size(),
        " counts, expected one for W and one for each of ", S.size(), " moments, or none");
  check_context("update", G, context);
  const Expression none = {G.out, G.in, {}};
  auto run = context.target == Target::ref ? ref::update : cpu::update;
  return run(W, S, rule.rule().reads_gradient ? G : none, rule, context, rounding);
}

}  // namespace forge
