#include "forge/torch/update_tensor.h"

#include <array>

#include "forge/base/error.h"
#include "forge/kernels/update.h"
#include "forge/torch/executor.h"
#include "forge/torch/matrix_view.h"

namespace forge {
namespace {

void bump(const at::Tensor& t) {
  if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

void update_tensor(const at::Tensor& weight, at::ArrayRef<at::Tensor> moments, const Expression& G,
                   const RuleStep& rule) {
  check(moments.size() <= kMaxMoments, "update: ", moments.size(), " moments are more than any rule has");
  Shape shape = matrix_shape(weight);
  std::array<Matrix, kMaxMoments> S;
  for (std::size_t i = 0; i < moments.size(); ++i) S[i] = as_matrix(moments[i], shape);
  update(as_matrix(weight, shape), {S.data(), moments.size()}, G, rule, torch_context(G));
  bump(weight);
  for (const at::Tensor& moment : moments) bump(moment);
}

}  // namespace forge
