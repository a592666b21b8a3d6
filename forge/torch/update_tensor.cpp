#include "forge/torch/update_tensor.h"

#include <array>

#include "forge/base/error.h"
#include "forge/kernels/update.h"
#include "forge/torch/executor.h"
#include "forge/torch/matrix_view.h"

namespace forge {
namespace {

void bump(const at::Tensor& t) {
  if (t.defined() && !t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}
void bump(const StoredTensor& t) { bump(t.values), bump(t.rest); }

}  // namespace

void update_tensor(const StoredTensor& weight, const Noise& noise, at::ArrayRef<StoredTensor> moments,
                   const Expression& G, const RuleStep& rule) {
  check(moments.size() <= kMaxMoments, "update: ", moments.size(), " moments are more than any rule has");
  Shape shape = matrix_shape(weight.values);
  std::array<Stored, kMaxMoments> S;
  for (std::size_t i = 0; i < moments.size(); ++i) S[i] = moments[i].view(shape);
  update(weight.view(shape, noise), {S.data(), moments.size()}, G, rule, torch_context(G));
  bump(weight);
  for (const StoredTensor& moment : moments) bump(moment);
}

}  // namespace forge
