#include "forge/torch/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "forge/torch/functional.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::throws;
using testing::within;

TEST(Optimizer, RefusesParametersThatItCannotHold) {
  at::Tensor W = parameter(random({4, 8}, 1));
  EXPECT_THAT([&] { AdamW(std::vector<at::Tensor>{}); }, throws("no parameter"));
  EXPECT_THAT([&] { AdamW({W, W}); }, throws("given twice"));
  EXPECT_THAT([&] { AdamW({W, W.view({8, 4})}); }, throws("not a leaf"));
  EXPECT_THAT([&] { AdamW({at::zeros({2})}); }, throws("requires a gradient"));
  EXPECT_THAT([&] { AdamW({parameter(at::zeros({2}, at::kDouble))}); }, throws("Double"));
  EXPECT_THAT([&] { AdamW({at::zeros({2}, at::TensorOptions(at::kMeta).dtype(at::kDouble)).requires_grad_()}); },
              throws("Double"));
  EXPECT_THAT([&] { AdamW({at::zeros({2, 1}).expand({2, 3}).detach().requires_grad_()}); }, throws("contiguous"));
  EXPECT_THAT([&] { AdamW({W}, {.beta1 = 1}); }, throws("beta1"));
  EXPECT_THAT([&] { AdamW({W}, {}, {.state_format = Format::bf16_plus8}); }, throws("state_format is bf16_plus8"));
  EXPECT_THAT([&] { AdamW({W}, {}, {.weight_format = Format::int8}); }, throws("weight_format is int8"));
  EXPECT_THAT([&] { AdamW({W}, {}, {.weight_format = Format::bf16_plus8}); }, throws("no parameter is bf16"));
  EXPECT_THAT([&] { AdamW({{.params = {W}, .state_format = Format::bf16_plus16}}); }, throws("a group's state_format"));
  EXPECT_THAT([&] { AdamW({parameter(at::zeros({2}, at::kHalf))}); }, throws("a parameter is Half, expected Float or"));
  AdamW opt({W});
  EXPECT_THAT([&] { SGD({W}); }, throws("held by another optimizer"));
  EXPECT_NO_THROW(forge::gradient(W)) << "the refused optimizer took nothing away";
}

TEST(Optimizer, UpdatesATransposedParameterInItsOwnLayout) {
  at::Tensor start = random({3, 5, 4}, 1), grad = random({3, 5, 4}, 2);
  at::Tensor row_major = parameter(start), other = start.permute({2, 0, 1}).contiguous().permute({1, 2, 0});
  other = other.detach().requires_grad_();
  ASSERT_FALSE(other.is_contiguous());
  AdamW a({row_major}), b({other});
  for (int step = 0; step < 3; ++step) {
    row_major.mutable_grad() = grad.clone();
    other.mutable_grad() = grad.clone();
    a.step();
    b.step();
  }
  EXPECT_TRUE(same_bits(row_major, other));
}

TEST(Optimizer, ReleasesItsParametersWhenItEnds) {
  at::Tensor W = parameter(random({4, 8}, 1));
  { AdamW opt({W}); }
  EXPECT_THAT([&] { forge::gradient(W); }, throws("no optimizer"));
  EXPECT_NO_THROW(SGD({W}));
}

// ---- The formulas -------------------------------------------------------------------------------------------------

// torch's AdamW in fp64 on the same fp32 gradients.
struct AdamWInDouble {
  at::Tensor w, m, v;
  int step = 0;
  explicit AdamWInDouble(const at::Tensor& W)
      : w(W.detach().to(at::kDouble)), m(at::zeros_like(w)), v(at::zeros_like(w)) {}
  void update(const at::Tensor& g, const AdamWOptions& o) {
    ++step;
    at::Tensor G = g.to(at::kDouble);
    w.mul_(1 - o.lr * o.weight_decay);
    m.mul_(o.beta1).add_(G, 1 - o.beta1);
    v.mul_(o.beta2).addcmul_(G, G, 1 - o.beta2);
    at::Tensor denominator = v.sqrt() / std::sqrt(1 - std::pow(o.beta2, step)) + o.eps;
    w.addcdiv_(m, denominator, -o.lr / (1 - std::pow(o.beta1, step)));
  }
};

TEST(AdamW, FollowsTorchsFormulaOnMatricesAndVectors) {
  AdamWOptions options{.lr = 0.01, .weight_decay = 0.1};
  at::Tensor W = parameter(random({6, 8}, 1)), b = parameter(random({6}, 2)), scalar = parameter(random({}, 3));
  AdamWInDouble W2(W), b2(b), scalar2(scalar);
  AdamW opt({W, b, scalar}, options);
  for (int step = 0; step < 4; ++step) {
    opt.zero_grad();
    (forge::linear(random({5, 8}, 10 + step), W, b) * scalar).pow(2).sum().backward();
    W2.update(forge::gradient(W).materialize(), options);
    b2.update(b.grad(), options);
    scalar2.update(scalar.grad(), options);
    opt.step();
  }
  EXPECT_EQ(opt.state()[0].progress.step, 5);
  // Each step rounds the weight a few times and moves it by about lr.
  auto bound = [](const at::Tensor& w) { return w.detach().abs() * (4 * 4 * 0x1p-24) + 4 * 16 * 0.01 * 0x1p-24; };
  EXPECT_TRUE(within(W, W2.w, bound(W)));
  EXPECT_TRUE(within(b, b2.w, bound(b)));
  EXPECT_TRUE(within(scalar, scalar2.w, bound(scalar)));
  EXPECT_TRUE(within(opt.state()[0].moments[0].values, W2.m, W2.m.abs().max().expand({6, 8}) * (16 * 0x1p-24)));
}

TEST(SGD, FollowsTorchsFormula) {
  for (SgdOptions o : {SgdOptions{.lr = 0.1, .weight_decay = 0.01},
                       SgdOptions{.lr = 0.1, .momentum = 0.9, .dampening = 0.1, .weight_decay = 0.01},
                       SgdOptions{.lr = 0.1, .momentum = 0.9, .nesterov = true, .maximize = true}}) {
    at::Tensor W = parameter(random({6, 8}, 1)), w = W.detach().to(at::kDouble), buffer;
    SGD opt({W}, o);
    for (int step = 0; step < 4; ++step) {
      opt.zero_grad();
      forge::linear(random({5, 8}, 10 + step), W).pow(2).mean().backward();
      at::Tensor g = forge::gradient(W).materialize().to(at::kDouble) * (o.maximize ? -1 : 1) + w * o.weight_decay;
      buffer = buffer.defined() ? buffer * o.momentum + g * (1 - o.dampening) : g;
      w = w - (o.momentum == 0 ? g : o.nesterov ? g + buffer * o.momentum : buffer) * o.lr;
      opt.step();
    }
    EXPECT_TRUE(within(W, w, (w.abs() + 1) * (4 * 8 * 0x1p-24)));
  }
}

TEST(SGD, MomentumMayBeTurnedOnLater) {
  at::Tensor W = parameter(at::zeros({2, 2}));
  SGD opt({W}, {.lr = 1});
  auto step = [&](float g) {
    W.mutable_grad() = at::full({2, 2}, g);
    opt.step();
  };
  step(1);
  EXPECT_TRUE(opt.state()[0].moments.empty());
  opt.groups()[0].options.momentum = 0.5;
  opt.groups()[0].options.dampening = 0.5;
  step(2);  // the buffer begins undamped: 2
  EXPECT_TRUE(W.equal(at::full({2, 2}, -3.f)));
  step(2);  // 0.5 · 2 + 0.5 · 2 = 2
  EXPECT_TRUE(W.equal(at::full({2, 2}, -5.f)));
}

TEST(Optimizer, GroupsHaveTheirOwnOptionsAndTheyMayChange) {
  at::Tensor a = parameter(at::zeros({3})), b = parameter(at::zeros({3}));
  SGD opt({{.params = {a}, .options = {.lr = 1}}, {.params = {b}, .options = {.lr = 0.5}}});
  auto step = [&] {
    opt.zero_grad();
    (a.sum() + b.sum()).backward();
    opt.step();
  };
  step();
  EXPECT_TRUE(a.equal(at::full({3}, -1.f)) && b.equal(at::full({3}, -0.5f)));
  opt.groups()[1].options.lr = 0;
  step();
  EXPECT_TRUE(a.equal(at::full({3}, -2.f)) && b.equal(at::full({3}, -0.5f)));
}

TEST(Optimizer, SkipsAParameterWithoutAGradientButNotAZeroGradient) {
  at::Tensor used = parameter(random({4, 8}, 1)), unused = parameter(random({4, 8}, 2)),
             before = unused.detach().clone();
  at::Tensor used_before = used.detach().clone();
  AdamW opt({used, unused}, {.lr = 0.1, .weight_decay = 0.5});
  forge::linear(at::zeros({0, 8}), used).sum().backward();
  opt.step();
  EXPECT_TRUE(same_bits(unused, before));
  EXPECT_EQ(opt.state()[1].progress.step, 1);
  EXPECT_TRUE(opt.state()[1].moments.empty());
  EXPECT_EQ(opt.state()[0].progress.step, 2);
  EXPECT_FALSE(used.equal(used_before)) << "T = 0 is a zero gradient: the weight decays";
}

TEST(Optimizer, KeepsStateInTheWeightsDtypeUnlessToldOtherwise) {
  for (auto [asked, expected] :
       {std::pair<std::optional<Format>, at::ScalarType>{std::nullopt, at::kBFloat16}, {Format::fp32, at::kFloat}}) {
    at::Tensor W = parameter(random({4, 8}, 1, at::kBFloat16));
    AdamW opt({W}, {}, {.state_format = asked});
    forge::linear(random({3, 8}, 2, at::kBFloat16), W).sum().backward();
    opt.step();
    EXPECT_EQ(opt.state()[0].moments[1].values.scalar_type(), expected);
    EXPECT_EQ(opt.memory().state, 2 * 32 * static_cast<std::int64_t>(c10::elementSize(expected)));
  }
}

TEST(Optimizer, CountsRecordedTermsAndDotGradTogether) {
  at::Tensor W = parameter(random({4, 8}, 1)), W2 = parameter(W), x = random({3, 8}, 2);
  SGD opt({W}, {.lr = 1}), opt2({W2}, {.lr = 1});
  auto loss = [&](const at::Tensor& y, const at::Tensor& z) { return y.sum() + z.pow(2).sum(); };
  loss(forge::linear(x, W), x.mm(W.t())).backward();
  loss(at::linear(x, W2), at::linear(x, W2)).backward();
  double norm = clip_grad_norm_({W}, 1).item<double>(), norm2 = clip_grad_norm_({W2}, 1).item<double>();
  EXPECT_NEAR(norm / norm2, 1, 1e-6);
  opt.step();
  opt2.step();
  EXPECT_TRUE(within(W, W2, at::full({4, 8}, 16 * 0x1p-24) * 4));
}

}  // namespace
}  // namespace forge
