#include "forge/torch/orthogonal.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <utility>

namespace forge {

void orthogonalize_(const at::Tensor& X, const NewtonSchulz& iteration) {
  at::Tensor x = X.size(0) > X.size(1) ? X.t() : X, next = at::empty(x.sizes(), X.options());
  x.div_(std::max(x.norm().item<double>(), static_cast<double>(iteration.eps)));
  for (int step = 0; step < iteration.steps; ++step) {
    at::Tensor gram = at::mm(x, x.t());
    at::addmm_out(next, x, at::addmm(gram, gram, gram, iteration.b, iteration.c), x, iteration.a);
    std::swap(x, next);
  }
  if (iteration.steps % 2 == 1) next.copy_(x);
}

}  // namespace forge
