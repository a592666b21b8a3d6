#include "forge/kernels/update.h"

#include "forge/kernels/check.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

void update(const Matrix& W, std::span<const Matrix> S, const Expression& G, const RuleStep& rule,
            const Context& context) {
  validate("update", G);
  check_stored("update", "W", W, G.out, G.in);
  check(static_cast<int>(S.size()) == moments_of(rule), "update: ", name_of(rule), " keeps ", moments_of(rule),
        " moments, got ", S.size());
  for (const Matrix& moment : S) {
    check_stored("update", "a moment", moment, G.out, G.in);
    check(moment.dtype == S[0].dtype, "update: moments are ", name_of(S[0].dtype), " and ", name_of(moment.dtype),
          "; one dtype for all is needed");
  }
  check_context("update", G, context);
  return context.target == Target::ref ? ref::update(W, S, G, rule, context) : cpu::update(W, S, G, rule, context);
}

}  // namespace forge
