#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"
#include "forge/torch/testing/tiny_model.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::throws;
using testing::TinyModel;
using testing::within;

// The whole gradient of a parameter as one tensor.
at::Tensor dense(const at::Tensor& p) {
  return forge::gradient(p).empty() ? p.grad().clone() : forge::gradient(p).materialize();
}

TEST(ClipGradNorm, EqualsADenseOracleForEveryCollapse) {
  for (OptimizerOptions options :
       {OptimizerOptions{}, {.collapse = Collapse::never}, {.collapse = Collapse::always}, {.exact = true}}) {
    TinyModel model;
    SGD opt(model.parameters(), {}, options);
    for (int micro = 0; micro < 2; ++micro) model.loss(TinyModel::batch(micro)).backward();
    std::vector<at::Tensor> before;
    double sum = 0;
    for (const at::Tensor& p : model.parameters()) {
      before.push_back(dense(p));
      sum += before.back().to(at::kDouble).pow(2).sum().item<double>();
    }
    double norm = clip_grad_norm_(model.parameters(), 0.5).item<double>();
    EXPECT_NEAR(norm / std::sqrt(sum), 1, 1e-6);
    ASSERT_GT(norm, 0.5);
    for (std::size_t i = 0; i < before.size(); ++i) {
      at::Tensor expected = before[i].to(at::kDouble) * (0.5 / (norm + 1e-6));
      EXPECT_TRUE(within(dense(model.parameters()[i]), expected, expected.abs() * 0x1p-22 + 1e-30));
    }
  }
}

TEST(ClipGradNorm, ExactModeHasTheBitsOfTheTwoPhaseBaseline) {
  auto train = [](OptimizerOptions options) {
    TinyModel model;
    AdamW opt(model.parameters(), {.lr = 0.01}, options);
    for (int step = 0; step < 3; ++step) {
      opt.zero_grad();
      for (int micro = 0; micro < 2; ++micro) model.loss(TinyModel::batch(2 * step + micro)).backward();
      clip_grad_norm_(model.parameters(), 0.5);
      opt.step();
    }
    return model.parameters();
  };
  auto a = train({.exact = true}), b = train({.collapse = Collapse::always, .exact = true});
  auto c = train({.collapse = Collapse::never, .exact = true});
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(same_bits(a[i], b[i]));
    EXPECT_TRUE(same_bits(a[i], c[i]));
  }
}

TEST(ClipGradNorm, LeavesASmallGradientAlone) {
  at::Tensor W = parameter(random({4, 8}, 1));
  SGD opt({W});
  forge::linear(random({3, 8}, 2), W).sum().backward();
  at::Tensor before = dense(W);
  clip_grad_norm_({W}, 1e6);
  EXPECT_TRUE(same_bits(dense(W), before));
}

TEST(ClipGradNorm, AMicroBatchAfterwardsIsNotClipped) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = random({2, 8}, 2);
  SGD opt({W}, {}, {.collapse = Collapse::never});
  forge::linear(x, W).sum().backward();
  at::Tensor one = dense(W).to(at::kDouble);
  double norm = clip_grad_norm_({W}, 1).item<double>();
  forge::linear(x, W).sum().backward();
  EXPECT_TRUE(within(dense(W), one * (1 / (norm + 1e-6) + 1), one.abs() * 0x1p-21));
}

TEST(ClipGradNorm, TakesParametersThatNoOptimizerHolds) {
  at::Tensor a = parameter(at::zeros({2})), b = parameter(at::zeros({2})), none = parameter(at::zeros({2}));
  SGD opt({a});
  (a * 3 + b * 4).slice(0, 0, 1).sum().backward();
  EXPECT_EQ(clip_grad_norm_({a, b, none}, 1).item<double>(), 5);
  EXPECT_NEAR(a.grad()[0].item<float>(), 0.6, 1e-6);
  EXPECT_NEAR(b.grad()[0].item<float>(), 0.8, 1e-6);
  EXPECT_FALSE(none.grad().defined());
}

TEST(ClipGradNorm, CarriesANonFiniteNormOrThrows) {
  at::Tensor W = parameter(random({4, 8}, 1)), b = parameter(at::zeros({4}));
  SGD opt({W, b});
  forge::linear(at::full({1, 8}, std::numeric_limits<float>::infinity()), W, b).backward(at::ones({1, 4}));
  EXPECT_THAT([&] { clip_grad_norm_({W, b}, 1, true); }, throws("the norm of the gradients is inf"));
  EXPECT_TRUE(b.grad().equal(at::ones({4})));
  EXPECT_EQ(forge::gradient(W).scale().read(), 1);
  EXPECT_TRUE(std::isinf(clip_grad_norm_({W, b}, 1).item<double>()));
  EXPECT_TRUE(b.grad().equal(at::zeros({4})));
  EXPECT_TRUE(forge::gradient(W).materialize().isnan().all().item<bool>()) << "0 · Inf, as in torch";
  opt.zero_grad();
  forge::linear(at::ones({1, 8}), W).sum().backward();
  b.mutable_grad() = at::full({4}, std::numeric_limits<float>::quiet_NaN());
  EXPECT_TRUE(std::isnan(clip_grad_norm_({W, b}, 1).item<double>()));
  EXPECT_TRUE(std::isnan(forge::gradient(W).scale().read())) << "a NaN norm reaches every gradient";
}

}  // namespace
}  // namespace forge
