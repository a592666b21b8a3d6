#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>
#include <vector>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::sum_bound;
using testing::throws;
using testing::within;

constexpr OptimizerOptions kKeepTerms{.collapse = Collapse::never};

TEST(Linear, LeavesWhatDoesNotFitToTorch) {
  at::Tensor W = parameter(at::zeros({4, 8})), V = parameter(at::zeros({8}));
  SGD opt({W, V});
  auto torchs = ::testing::Throws<c10::Error>();
  EXPECT_THAT([&] { at::linear(at::zeros({3, 5}), W); }, torchs);
  EXPECT_THAT([&] { at::linear(at::zeros({3, 8}), W, at::zeros({3})); }, torchs);
  EXPECT_THAT([&] { at::linear(at::zeros({3, 8}, at::kBFloat16), W); }, torchs);
  EXPECT_EQ(at::linear(at::ones({3, 8}), V).sizes(), at::IntArrayRef({3})) << "torch takes a vector for the weight";
  EXPECT_TRUE(forge::gradient(W).empty());
}

using Seen = at::Tensor (*)(const at::Tensor& W);  // what a forward pass does to the weight first

// The gradient that is recorded is torch's, computed by the same use of a weight that nobody holds, but for the type in
// which torch rounds it on its way.
void expect_recorded(Seen seen, at::ScalarType type, double rounding) {
  at::Tensor W = parameter(random({8, 8}, 1)), W2 = parameter(W), x = random({3, 8}, 2, type);
  SGD opt({W}, {}, kKeepTerms);
  at::linear(x, seen(W)).pow(2).sum().backward();
  at::linear(x, seen(W2)).pow(2).sum().backward();
  ASSERT_FALSE(W.grad().defined());
  at::Tensor bound = W2.grad().abs().max() * rounding;
  EXPECT_TRUE(within(forge::gradient(W).materialize(), W2.grad(), bound.expand({8, 8})));
}

TEST(Linear, RecordsBehindTransposesAndCasts) {
  constexpr double kFp32 = 0x1p-20, kFp16 = 0x1p-10, kBf16 = 0x1p-7;
  expect_recorded([](const at::Tensor& W) { return W.t(); }, at::kFloat, kFp32);
  expect_recorded([](const at::Tensor& W) { return W.t().t(); }, at::kFloat, kFp32);
  expect_recorded([](const at::Tensor& W) { return W.to(at::kBFloat16); }, at::kBFloat16, kBf16);
  expect_recorded([](const at::Tensor& W) { return W.t().to(at::kBFloat16); }, at::kBFloat16, kBf16);
  expect_recorded([](const at::Tensor& W) { return W.to(at::kHalf).t(); }, at::kHalf, kFp16);
  expect_recorded([](const at::Tensor& W) { return W.to(at::kBFloat16).to(at::kFloat); }, at::kFloat, kBf16);
  // Square, contiguous and the transpose all the same.
  expect_recorded(
      [](const at::Tensor& W) { return W.t().to(at::kBFloat16, false, true, at::MemoryFormat::Contiguous); },
      at::kBFloat16, kBf16);
}

TEST(Linear, RecordsBehindSwappedAxesOfTheWeightItself) {
  constexpr double kFp32 = 0x1p-20;
  expect_recorded([](const at::Tensor& W) { return W.transpose(0, 1); }, at::kFloat, kFp32);
  expect_recorded([](const at::Tensor& W) { return W.permute({1, 0}); }, at::kFloat, kFp32);
  expect_recorded([](const at::Tensor& W) { return W.permute({0, 1}); }, at::kFloat, kFp32);
  expect_recorded([](const at::Tensor& W) { return W.numpy_T().t(); }, at::kFloat, kFp32);
}

// A product past linear is recorded as well: x (…, in) from the left, columns of tokens from the right.
TEST(Linear, RecordsProducts) {
  using Product = at::Tensor (*)(const at::Tensor& W);  // (4, 8)
  for (Product product :
       {Product([](const at::Tensor& W) {
          return at::matmul(random({3, 4}, 2), W);
        }),
        Product([](const at::Tensor& W) { return at::matmul(random({4}, 2), W); }), Product([](const at::Tensor& W) {
          return at::matmul(random({2, 3, 8}, 2), W.t());
        }),
        Product([](const at::Tensor& W) {
          return at::matmul(random({3, 8}, 2), W.numpy_T());
        }),
        Product([](const at::Tensor& W) {
          return at::matmul(W, random({8, 3}, 2));
        }),
        Product([](const at::Tensor& W) {
          return at::matmul(W, random({2, 8, 3}, 2));
        }),
        Product([](const at::Tensor& W) {
          return at::matmul(W.t(), random({2, 5, 4, 3}, 2));
        })}) {
    at::Tensor W = parameter(random({4, 8}, 1)), W2 = parameter(W);
    SGD opt({W}, {}, kKeepTerms);
    at::Tensor y = product(W), y2 = product(W2);
    EXPECT_TRUE(same_bits(y, y2));
    y.pow(2).sum().backward();
    y2.pow(2).sum().backward();
    ASSERT_FALSE(W.grad().defined());
    at::Tensor bound = (W2.grad().abs().max() * 0x1p-19).expand({4, 8});
    EXPECT_TRUE(within(forge::gradient(W).materialize(), W2.grad(), bound));
  }
}

TEST(Linear, AProductsOtherFactorGetsItsGradient) {
  for (bool from_right : {false, true}) {
    at::Tensor W = parameter(random({4, 8}, 1)), x = parameter(random({2, 8, 3}, 2)), x2 = parameter(x);
    SGD opt({W});
    auto product = [&](const at::Tensor& V, const at::Tensor& t) {
      return from_right ? at::matmul(t.transpose(1, 2), V.t()) : at::matmul(V, t);
    };
    product(W, x).pow(2).sum().backward();
    product(W.detach(), x2).pow(2).sum().backward();
    EXPECT_TRUE(at::allclose(x.grad(), x2.grad(), 1e-5, 1e-5));
  }
}

TEST(Linear, IsOrdinaryForWhatIsNoCastNorTranspose) {
  auto is_ordinary = [](Seen seen) {
    at::Tensor W = parameter(random({8, 8}, 1));
    SGD opt({W});
    at::linear(random({3, 8}, 2), seen(W)).sum().backward();
    return W.grad().defined() && forge::gradient(W).empty() && opt.ordinary_gradients().size() == 1;
  };
  EXPECT_TRUE(is_ordinary([](const at::Tensor& W) { return W * 2; }));
  EXPECT_TRUE(is_ordinary([](const at::Tensor& W) { return W.slice(0, 0, 4); }));
  EXPECT_TRUE(is_ordinary([](const at::Tensor& W) { return W.flip(0); }));
  EXPECT_TRUE(is_ordinary([](const at::Tensor& W) { return W.to(at::kDouble).tanh().to(at::kFloat); }));
}

TEST(Linear, ACastThatWasWrittenToGivesTheGradientOfWhatItIs) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = parameter(random({3, 8}, 2, at::kBFloat16));
  SGD opt({W});
  at::Tensor cast = W.to(at::kBFloat16);
  cast.detach().mul_(2);
  at::linear(x, cast).sum().backward();
  EXPECT_TRUE(x.grad().equal(at::ones({3, 4}, at::kBFloat16).mm(cast.detach())));
}

TEST(Linear, IsAtLinearInForwardAndForBiasAndX) {
  for (std::vector<std::int64_t> sizes : {std::vector<std::int64_t>{8}, {3, 8}, {2, 5, 8}, {2, 0, 3, 8}, {0, 8}}) {
    at::Tensor W = parameter(random({4, 8}, 1)), b = parameter(random({4}, 2)), x = parameter(random(sizes, 3));
    at::Tensor W2 = parameter(W), b2 = parameter(b), x2 = parameter(x);
    SGD opt({W, b}, {}, kKeepTerms);
    at::Tensor y = forge::linear(x, W, b), y2 = at::linear(x2, W2, b2);
    EXPECT_TRUE(same_bits(y, y2));
    at::Tensor dY = random(y.sizes(), 4);
    y.backward(dY);
    y2.backward(dY);
    EXPECT_TRUE(within(x.grad(), x2.grad(), at::full_like(x, 1e-6)));
    EXPECT_TRUE(within(b.grad(), b2.grad(), at::full_like(b, 1e-6)));
    EXPECT_FALSE(W.grad().defined());
    ASSERT_EQ(forge::gradient(W).size(), 1);
    at::Tensor tokens = dY.reshape({y.numel() / 4, 4}), X = x.detach().reshape({y.numel() / 4, 8});
    EXPECT_TRUE(within(forge::gradient(W).materialize(), W2.grad(), sum_bound(tokens, X)));
  }
}

TEST(Linear, TransposedIsLinearOfTheTransposedWeight) {
  at::Tensor W = random({4, 8}, 1), b = parameter(random({4}, 2)), x = parameter(random({2, 3, 8}, 3));
  at::Tensor V = parameter(W.t().contiguous()), W2 = parameter(W), b2 = parameter(b), x2 = parameter(x);
  SGD opt({V, b}, {}, kKeepTerms);
  at::Tensor y = forge::linear_transposed(x, V, b), y2 = at::linear(x2, W2, b2), dY = random(y.sizes(), 4);
  EXPECT_TRUE(within(y, y2, at::full_like(y, 1e-6)));
  y.backward(dY);
  y2.backward(dY);
  EXPECT_TRUE(within(x.grad(), x2.grad(), at::full_like(x, 1e-6)));
  EXPECT_TRUE(within(b.grad(), b2.grad(), at::full_like(b, 1e-6)));
  at::Tensor bound = sum_bound(dY.reshape({6, 4}), x.detach().reshape({6, 8}));
  EXPECT_TRUE(within(forge::gradient(V).materialize().t(), W2.grad(), bound));
  at::Tensor before = forge::gradient(V).materialize();
  x.detach().zero_();
  EXPECT_TRUE(same_bits(forge::gradient(V).materialize(), before)) << "the user's own x was not copied";
}

TEST(Linear, AWeightUsedTwiceRecordsBothUses) {
  at::Tensor W = parameter(random({8, 8}, 1)), W2 = parameter(W), x = random({5, 8}, 2);
  SGD opt({W}, {}, kKeepTerms);
  forge::linear(at::tanh(forge::linear(x, W)), W).pow(2).sum().backward();
  at::linear(at::tanh(at::linear(x, W2)), W2).pow(2).sum().backward();
  EXPECT_EQ(forge::gradient(W).size(), 2);
  // Ten contributions of at most the largest element's size squared.
  EXPECT_TRUE(
      within(forge::gradient(W).materialize(), W2.grad(), at::full({8, 8}, 64 * 0x1p-24) * W2.grad().abs().max()));
}

TEST(Linear, AccumulatesOverBackwardPasses) {
  at::Tensor W = parameter(random({4, 8}, 1)), dY = random({6, 4}, 2), X = random({6, 8}, 3);
  SGD opt({W}, {}, kKeepTerms);
  forge::linear(X, W).backward(dY);
  at::Tensor whole = forge::gradient(W).materialize();
  opt.zero_grad();
  EXPECT_TRUE(forge::gradient(W).empty());
  for (int i = 0; i < 3; ++i) forge::linear(X.slice(0, 2 * i, 2 * i + 2), W).backward(dY.slice(0, 2 * i, 2 * i + 2));
  EXPECT_EQ(forge::gradient(W).size(), 3);
  EXPECT_TRUE(same_bits(forge::gradient(W).materialize(), whole));
}

// ---- The ordinary path --------------------------------------------------------------------------------------------

TEST(Linear, IsOrdinaryWhereNoOptimizerHoldsTheWeight) {
  at::Tensor W = parameter(random({4, 8}, 1));
  EXPECT_THAT([&] { forge::gradient(W); }, throws("no optimizer holds"));
  forge::linear(random({3, 8}, 2), W).sum().backward();
  EXPECT_TRUE(W.grad().defined());
}

TEST(Linear, IsOrdinaryWhereTheWeightHasAHook) {
  at::Tensor W = parameter(random({4, 8}, 1));
  SGD opt({W});
  int calls = 0;
  W.register_hook([&](const at::Tensor& g) { return ++calls, g * 2; });
  forge::linear(at::ones({3, 8}), W).sum().backward();
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(forge::gradient(W).empty());
  EXPECT_TRUE(W.grad().equal(at::full({4, 8}, 6.f)));
}

TEST(Linear, IsOrdinaryWithoutGradModeAndForViewsOfTheWeight) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = random({3, 8}, 2);
  SGD opt({W});
  {
    at::NoGradGuard guard;
    EXPECT_FALSE(forge::linear(x, W).requires_grad());
  }
  forge::linear(x, W * 1).sum().backward();
  EXPECT_TRUE(forge::gradient(W).empty());
  EXPECT_TRUE(W.grad().defined());
}

TEST(Linear, AfterItsOptimizerHasGoneGivesAnOrdinaryGradient) {
  at::Tensor W = parameter(random({4, 8}, 1)), y;
  {
    SGD opt({W});
    y = forge::linear(at::ones({3, 8}), W);
  }
  y.sum().backward();
  EXPECT_TRUE(W.grad().equal(at::full({4, 8}, 3.f)));
}

TEST(Linear, GivesATensorToWhoAsksForOne) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = parameter(at::ones({3, 8}));
  SGD opt({W});
  auto grads = torch::autograd::grad({forge::linear(x, W).sum()}, {W, x});
  EXPECT_TRUE(grads[0].equal(at::full({4, 8}, 3.f)));
  EXPECT_TRUE(forge::gradient(W).empty());
}

TEST(Linear, RecordsNothingWhereTheWeightIsNoInputOfBackward) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = parameter(at::ones({3, 8}));
  SGD opt({W});
  forge::linear(x, W).sum().backward({}, std::nullopt, false, at::TensorList(x));
  EXPECT_TRUE(x.grad().defined());
  EXPECT_TRUE(forge::gradient(W).empty());
  forge::linear(x, W).sum().backward({}, std::nullopt, false, at::TensorList(W));
  EXPECT_EQ(forge::gradient(W).size(), 1);
}

TEST(Linear, IsOrdinaryWhereTheWeightIsDifferentiatedTwice) {
  at::Tensor W = parameter(random({4, 8}, 1)), W2 = parameter(W), x = random({3, 8}, 2);
  SGD opt({W});
  auto second = [&](const at::Tensor& V) {
    at::linear(x, V).pow(3).sum().backward({}, std::nullopt, /*create_graph=*/true);
    return torch::autograd::grad({V.grad().pow(2).sum()}, {V})[0];
  };
  at::Tensor theirs = second(W2);
  EXPECT_TRUE(within(second(W), theirs, at::full({4, 8}, 1e-5) * theirs.abs().max()));
  EXPECT_TRUE(forge::gradient(W).empty());
  EXPECT_EQ(opt.ordinary_gradients().at(0).reason, "differentiated twice (create_graph=True)");
}

TEST(Linear, IsTwiceDifferentiableInX) {
  at::Tensor W = parameter(random({4, 8}, 1)), W2 = parameter(W), x = parameter(random({3, 8}, 2));
  SGD opt({W});
  auto penalty = [&](const at::Tensor& y) {
    return torch::autograd::grad({y.pow(2).sum()}, {x}, {}, std::nullopt, true)[0].pow(2).sum();
  };
  auto g = torch::autograd::grad({penalty(forge::linear(x, W))}, {x});
  auto g2 = torch::autograd::grad({penalty(at::linear(x, W2))}, {x});
  EXPECT_TRUE(within(g[0], g2[0], at::full({3, 8}, 1e-5) * g2[0].abs().max()));
}

// ---- What is kept -------------------------------------------------------------------------------------------------

TEST(Linear, AUsersInputMayBeRefilledBeforeStep) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = random({1, 8}, 2);
  SGD opt({W});
  forge::linear(x, W).sum().backward();
  at::Tensor before = forge::gradient(W).materialize();
  x.zero_();
  EXPECT_TRUE(same_bits(forge::gradient(W).materialize(), before));
}

TEST(Linear, AnActivationChangedBeforeStepRaises) {
  at::Tensor W = parameter(random({8, 8}, 1)), V = parameter(random({8, 8}, 2));
  SGD opt({W, V});
  at::Tensor h = forge::linear(random({1, 8}, 3), W);
  forge::linear(h, V).sum().backward();
  h.detach().mul_(2);
  at::Tensor V_before = V.detach().clone(), W_before = W.detach().clone();
  EXPECT_THAT([&] { opt.step(); }, throws("changed in place"));
  EXPECT_TRUE(same_bits(V, V_before));
  EXPECT_TRUE(same_bits(W, W_before)) << "a step happens as a whole or not at all";
}

TEST(Linear, AGradientThatAutogradWouldShareWithATermIsItsOwn) {
  // Through its view the leaf's .grad would be the storage of the layer's dY; adding to it in place would change both.
  at::Tensor W = parameter(random({8, 8}, 1)), leaf = parameter(random({2, 4}, 2)), x = random({1, 8}, 3);
  SGD opt({W, leaf});
  for (int i = 0; i < 2; ++i) ((forge::linear(x, W) + leaf.view({1, 8})) * random({1, 8}, 4)).sum().backward();
  EXPECT_NO_THROW(clip_grad_norm_({W, leaf}, 0.1));
  EXPECT_NO_THROW(opt.step());
}

TEST(Linear, WithoutADXDoesNotMindAWeightThatHasMoved) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = random({3, 8}, 2);
  SGD opt({W});
  at::Tensor y = forge::linear(x, W);
  W.detach().mul_(2);
  EXPECT_NO_THROW(y.sum().backward());
}

TEST(Linear, UnderAutocastKeepsTheCastOfX) {
  at::ScalarType usual = at::autocast::get_autocast_dtype(at::kCPU);
  for (at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    at::Tensor W = parameter(random({32, 32}, 1)), b = parameter(random({32}, 2)), x = parameter(random({2, 32}, 3));
    SGD opt({W, b});
    at::autocast::set_autocast_dtype(at::kCPU, type);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::Tensor y = forge::linear(x, W, b), y2 = at::linear(x, W, b);
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::set_autocast_dtype(at::kCPU, usual);
    at::autocast::clear_cache();
    EXPECT_TRUE(same_bits(y, y2));
    y.to(at::kFloat).pow(2).sum().backward();
    EXPECT_EQ(forge::gradient(W).held_bytes(), 2 * 2 * 32 * 2) << "dY and X in two bytes each";
    EXPECT_EQ(x.grad().scalar_type(), at::kFloat);
    at::Tensor dY = (2 * y.detach().to(at::kFloat)).to(type), X = x.detach().to(type);
    EXPECT_TRUE(
        within(forge::gradient(W).materialize(), dY.to(at::kDouble).t().mm(X.to(at::kDouble)), sum_bound(dY, X)));
    EXPECT_NO_THROW(opt.step());
  }
}

}  // namespace
}  // namespace forge
