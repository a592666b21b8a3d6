#include "forge/kernels/check.h"

#include <algorithm>

#include "forge/base/error.h"

namespace forge {

void check_context(const char* who, const Expression& G, const Context& context) {
  auto all = available_targets();
  check(std::find(all.begin(), all.end(), context.target) != all.end(), who, ": this machine cannot run ",
        name_of(context.target), "; available_targets() lists what it can");
  std::size_t needed = workspace_bytes(G, context.executor.workers(), context.target);
  check(context.workspace.size() >= needed, who, ": the workspace has ", context.workspace.size(), " bytes, ", needed,
        " are needed (workspace_bytes)");
}

void check_weight(const char* who, const Stored& W, std::span<const Stored> S, std::int64_t out, std::int64_t in,
                  const RuleStep& rule) {
  check_stored(who, "W", W, out, in);
  check(info_of(W.format).for_weights, who, ": W is ", name_of(W.format), ", which is a format for moments");
  std::span<const Moment> moments = rule.rule().moments;
  check(S.size() == moments.size(), who, ": ", rule.name(), " keeps ", moments.size(), " moments, got ", S.size());
  for (std::size_t k = 0; k < S.size(); ++k) {
    check_stored(who, moments[k].key, S[k], moments[k].rows(out), moments[k].cols(in), moments[k].sign);
    check(moments[k].extent == Extent::element || S[k].format == Format::fp32, who, ": ", moments[k].key, " is ",
          name_of(S[k].format), "; a number for a row or a column is fp32");
    check(info_of(S[k].format).for_moments, who, ": ", moments[k].key, " is ", name_of(S[k].format),
          ", which is a format for weights");
  }
}

void check_materialized(const char* who, const Matrix& D, const Expression& G) {
  check_matrix(who, "D", D, G.out, G.in);
  check(D.dtype == DType::f32 || D.dtype == DType::bf16, who, ": D is ", name_of(D.dtype),
        ", which only the gradient's operands may be; store it as fp32 or bf16");
}

}  // namespace forge
