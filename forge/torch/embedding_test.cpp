#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::within;

TEST(Embedding, LeavesWhatDoesNotFitToTorch) {
  at::Tensor W = parameter(at::zeros({5, 3}));
  SGD opt({W});
  auto torchs = ::testing::Throws<c10::Error>();
  EXPECT_THAT([&] { at::embedding(W, at::tensor({1, 5}, at::kLong)); }, torchs);
  EXPECT_THAT([&] { at::embedding(W, at::tensor({-1, 4}, at::kLong)); }, torchs);
  EXPECT_THAT([&] { at::embedding(W, at::tensor({1.f})); }, torchs);
}

TEST(Embedding, IsTorchsOwnWhereNoOptimizerHoldsTheWeight) {
  at::Tensor W = parameter(random({5, 8}, 1));
  EXPECT_EQ(at::embedding(W, at::tensor({1, 4}, at::kLong)).grad_fn()->name(), "EmbeddingBackward0");
}

TEST(Embedding, RecordsWhateverItsIndexIsOfAndHoweverItsGradientWouldBeStored) {
  for (bool sparse : {false, true})
    for (at::ScalarType type : {at::kLong, at::kInt}) {
      at::Tensor W = parameter(random({5, 8}, 1));
      SGD opt({W}, {}, {.collapse = Collapse::never});
      at::embedding(W, at::tensor({4, 0, 4}, type), -1, false, sparse).sum().backward();
      EXPECT_TRUE(forge::gradient(W).materialize().sum(1).equal(at::tensor({8.f, 0.f, 0.f, 0.f, 16.f})));
    }
}

TEST(Embedding, IsOrdinaryWhereFrequenciesScaleItsGradient) {
  at::Tensor W = parameter(random({5, 8}, 1));
  SGD opt({W});
  at::embedding(W, at::tensor({4, 0, 4}, at::kLong), -1, /*scale_grad_by_freq=*/true, false).sum().backward();
  EXPECT_TRUE(W.grad().sum(1).equal(at::tensor({8.f, 0.f, 0.f, 0.f, 8.f})));
  EXPECT_EQ(opt.ordinary_gradients().at(0).reason, "an embedding with scale_grad_by_freq");
}

TEST(Embedding, RecordsRowsThatEqualAutogradsGradient) {
  at::Tensor W = parameter(random({5, 8}, 1)), W2 = parameter(W),
             index = at::tensor({4, 0, 4, 2}, at::kLong).view({2, 2});
  SGD opt({W}, {}, {.collapse = Collapse::never});
  at::Tensor dY = random({2, 2, 8}, 2), y = forge::embedding(index, W);
  EXPECT_TRUE(same_bits(y, at::embedding(W2, index)));
  y.backward(dY);
  at::embedding(W2, index).backward(dY);
  EXPECT_FALSE(W.grad().defined());
  EXPECT_TRUE(forge::gradient(W).materialize().equal(W2.grad())) << "two summands at most: any order rounds alike";
  index.zero_();
  EXPECT_TRUE(forge::gradient(W).materialize().equal(W2.grad())) << "the index was the user's own";
}

TEST(Embedding, SkipsThePaddingRow) {
  at::Tensor W = parameter(random({5, 8}, 1));
  SGD opt({W}, {}, {.collapse = Collapse::never});
  forge::embedding(at::tensor({4, 0, 4, 2}, at::kLong), W, 4).sum().backward();
  at::Tensor G = forge::gradient(W).materialize();
  EXPECT_TRUE(G.sum(1).equal(at::tensor({8.f, 0.f, 8.f, 0.f, 0.f})));
}

TEST(Embedding, OfNoTokenIsAZeroGradient) {
  at::Tensor W = parameter(random({5, 8}, 1));
  SGD opt({W});
  forge::embedding(at::zeros({0}, at::kLong), W).sum().backward();
  EXPECT_FALSE(forge::gradient(W).empty());
  EXPECT_EQ(forge::gradient(W).sum_squares(false).item<double>(), 0);
}

TEST(Embedding, TiedToALinearHeadCollectsBothInOneGradient) {
  at::Tensor W = parameter(random({5, 8}, 1)), W2 = parameter(W), index = at::tensor({4, 0, 4}, at::kLong);
  SGD opt({W}, {}, {.collapse = Collapse::never});
  forge::linear(forge::embedding(index, W), W).pow(2).sum().backward();
  at::linear(at::embedding(W2, index), W2).pow(2).sum().backward();
  EXPECT_EQ(forge::gradient(W).size(), 2);
  EXPECT_TRUE(
      within(forge::gradient(W).materialize(), W2.grad(), at::full({5, 8}, 32 * 0x1p-24) * W2.grad().abs().max()));
}

}  // namespace
}  // namespace forge
