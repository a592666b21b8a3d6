#include "forge/torch/orthogonal.h"

#include <ATen/ATen.h>

#include <utility>

#include "forge/rules/list.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

NewtonSchulz usual() {
  RuleStep step = OptimizingOf<MuonOptions>::prepare({}, 1);
  return step.rule().orthogonalized(step);
}

// In fp64, without transposing.
at::Tensor exact(const at::Tensor& X, const NewtonSchulz& n) {
  at::Tensor x = X.to(at::kDouble);
  x = x.div(x.norm());
  for (int i = 0; i < n.steps; ++i) {
    at::Tensor gram = at::mm(x, x.t());
    x = x.mul(n.a).add(at::mm(gram.mul(n.b).add(at::mm(gram, gram), n.c), x));
  }
  return x;
}

TEST(Orthogonal, IsTheIterationWhateverTheShape) {
  for (auto [m, n] : {std::pair{20, 50}, {50, 20}, {16, 16}, {1, 7}, {7, 1}}) {
    at::Tensor X = testing::random({m, n}, 3), expected = exact(X, usual());
    orthogonalize_(X, usual());
    EXPECT_LT((X.to(at::kDouble) - expected).norm().item<double>(), 1e-5 * expected.norm().item<double>()) << m;
  }
}

TEST(Orthogonal, BringsSingularValuesNearOne) {
  at::Tensor X = testing::random({30, 90}, 4);
  orthogonalize_(X, usual());
  at::Tensor values = at::linalg_svdvals(X);
  EXPECT_GT(values.min().item<float>(), 0.6f);
  EXPECT_LT(values.max().item<float>(), 1.25f);
}

TEST(Orthogonal, LeavesZerosAsTheyAre) {
  at::Tensor X = at::zeros({4, 6});
  orthogonalize_(X, usual());
  EXPECT_EQ(X.abs().max().item<float>(), 0);
}

}  // namespace
}  // namespace forge
