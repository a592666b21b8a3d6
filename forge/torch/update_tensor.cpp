#include "forge/torch/update_tensor.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "forge/base/error.h"
#include "forge/kernels/update.h"
#include "forge/torch/allocation.h"
#include "forge/torch/executor.h"
#include "forge/torch/matrix_view.h"
#include "forge/torch/orthogonal.h"

namespace forge {
namespace {

void bump(const at::Tensor& t) {
  if (t.defined() && !t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}
void bump(const StoredTensor& t) { bump(t.values), bump(t.rest); }

// The passes over one weight.
struct Passes {
  Stored W;
  std::span<const Stored> S;
  std::span<RoundingCount> rounding;
  at::Tensor direction;  // of the pass before, orthogonal
  Term dense;

  // Runs one, and gives the next.
  std::optional<RuleStep> run(const RuleStep& pass, const Expression& G) {
    const RuleInfo& rule = pass.rule();
    std::span<const Stored> moments = S.first(rule.moments.size());
    std::span<RoundingCount> counts = rounding.first(std::min(rounding.size(), 1 + moments.size()));
    if (!rule.orthogonalized) return pass.next(update(W, moments, G, pass, torch_context(G), counts));
    ScopedPurpose purpose(Purpose::direction);
    direction = at::empty({G.out, G.in}, at::kFloat);
    RoundingCount of_weight = counts.empty() ? RoundingCount{} : counts[0];
    Sums sums = update(as_matrix(direction, {G.out, G.in}), moments, G, pass, torch_context(G), counts);
    if (!counts.empty()) counts[0] = of_weight;  // the direction is none
    orthogonalize_(direction, rule.orthogonalized(pass));
    return pass.next(sums);
  }

  // What a pass behind the first has as its gradient: the direction, where there is one.
  Expression gradient(const Expression& G) {
    if (!direction.defined()) return G;
    dense = Dense{as_matrix(direction, {G.out, G.in})};
    return {G.out, G.in, std::span(&dense, 1)};
  }
};

}  // namespace

void update_tensor(const StoredTensor& weight, const Noise& noise, at::ArrayRef<StoredTensor> moments,
                   const Expression& G, const RuleStep& rule, std::span<RoundingCount> rounding) {
  check(moments.size() <= kMaxMoments, "update: ", moments.size(), " moments are more than any rule has");
  Shape shape = matrix_shape(weight.values);
  std::array<Stored, kMaxMoments> S;
  for (std::size_t i = 0; i < moments.size(); ++i) S[i] = moments[i].view(shape);
  Passes passes = {weight.view(shape, noise), {S.data(), moments.size()}, rounding, {}, {}};
  std::optional<RuleStep> pass = passes.run(rule, G);
  while (pass) pass = passes.run(*pass, passes.gradient(G));
  bump(weight);
  for (const StoredTensor& moment : moments) bump(moment);
}

}  // namespace forge
