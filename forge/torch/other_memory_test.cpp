// A parameter that the user gives other memory (.data, set_data) after its optimizer was made.
#include <ATen/ATen.h>

#include <functional>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::throws;

constexpr OptimizerOptions kAtStep{}, kInBackward{.schedule = Schedule::in_backward};

// Two steps of a layer whose weight and bias get other memory of the same numbers in between, beside two without it.
void expect_followed(const std::function<at::Tensor(const at::Tensor&)>& other_memory,
                     const OptimizerOptions& options) {
  auto train = [&](const std::function<at::Tensor(const at::Tensor&)>& moved) {
    at::Tensor W = parameter(random({8, 6}, 1)), b = parameter(random({8}, 2));
    AdamW opt({W, b}, {.lr = 0.1}, options);
    for (int step = 0; step < 3; ++step) {
      opt.zero_grad();
      at::linear(random({3, 6}, 3), W, b).pow(2).sum().backward();
      opt.step();
      if (step == 0) W.set_data(moved(W.detach())), b.set_data(moved(b.detach()));
    }
    return at::cat({W.detach().flatten(), b.detach()});
  };
  at::Tensor stayed = train([](const at::Tensor&t) { return t; }), moved = train(other_memory);
  EXPECT_TRUE(at::allclose(moved, stayed, 1e-5, 1e-6)) << (moved - stayed).abs().max();
}

// Every second element of a larger buffer.
at::Tensor with_gaps(const at::Tensor& t) {
  auto sizes = t.sizes().vec();
  sizes.back() *= 2;
  at::Tensor gaps = at::full(sizes, 7.f).slice(-1, 0, sizes.back(), 2);
  return gaps.copy_(t);
}

TEST(OtherMemory, IsUpdatedWhereverItsElementsLie) {
  for (const OptimizerOptions& options : {kAtStep, kInBackward}) {
    expect_followed([](const at::Tensor& t) { return t.clone(); }, options);
    expect_followed(with_gaps, options);
    expect_followed([](const at::Tensor& t) { return at::zeros({t.numel() + 3}).slice(0, 3).view(t.sizes()).copy_(t); },
                    options);
    expect_followed([](const at::Tensor& t) { return t.dim() == 2 ? t.t().contiguous().t() : t; }, options);
    expect_followed([](const at::Tensor& t) { return t.dim() == 2 ? with_gaps(t.t()).t() : t; }, options);
  }
}

TEST(OtherMemory, BetweenItsElementsIsLeftAlone) {
  at::Tensor W = parameter(random({4, 6}, 1)), buffer = at::full({4, 12}, 7.f);
  SGD opt({W}, {.lr = 0.1});
  W.set_data(buffer.slice(1, 0, 12, 2).copy_(W.detach()));
  at::linear(random({3, 6}, 3), W).sum().backward();
  opt.step();
  EXPECT_TRUE(buffer.slice(1, 1, 12, 2).equal(at::full({4, 6}, 7.f)));
}

TEST(OtherMemory, OfAnotherShapeTrainsWhereNothingIsKeptOfTheOld) {
  for (const OptimizerOptions& options : {kAtStep, kInBackward}) {
    at::Tensor W = parameter(at::ones({4, 6})), b = parameter(at::ones({4})), norm = parameter(at::ones({6}));
    SGD opt({W, b, norm}, {.lr = 0.5}, options);
    for (std::int64_t rows : {4, 9, 2}) {
      opt.zero_grad();
      W.set_data(at::ones({rows, 6}));
      b.set_data(at::ones({rows}));
      norm.set_data(at::ones({6}));
      (at::linear(at::ones({1, 6}) * norm, W, b).sum() + norm.sum()).backward();
      opt.step();
      EXPECT_TRUE(W.equal(at::full({rows, 6}, 0.5f)));
      EXPECT_TRUE(b.equal(at::full({rows}, 0.5f)));
    }
  }
}

TEST(OtherMemory, OfAnotherShapeWithMomentsOrTermsOfTheOldIsRefused) {
  at::Tensor W = parameter(random({4, 6}, 1));
  AdamW opt({W}, {});
  auto backward = [&] { at::linear(at::ones({1, W.size(1)}), W).sum().backward(); };
  backward();
  W.set_data(random({4, 5}, 2));
  EXPECT_THAT([&] { opt.step(); }, throws("call zero_grad() where you give a parameter other memory"));
  EXPECT_THAT([&] { backward(); }, throws("call zero_grad() first"));
  opt.zero_grad();
  W.set_data(random({4, 6}, 1));
  backward();
  opt.step();
  opt.zero_grad();
  W.set_data(random({4, 5}, 2));
  backward();
  at::Tensor before = W.detach().clone();
  EXPECT_THAT([&] { opt.step(); }, throws("\"exp_avg\" of a parameter of shape [4, 5] on cpu is [4, 6]"));
  EXPECT_TRUE(same_bits(W, before));
}

TEST(OtherMemory, ThatAnUpdateCannotBeWrittenToIsRefused) {
  at::Tensor W = parameter(random({4, 6}, 1)), V = parameter(random({4, 6}, 2)), before = V.detach().clone();
  SGD opt({V, W}, {});
  auto refused = [&](const at::Tensor& memory, const char* sentence) {
    opt.zero_grad();
    at::linear(at::ones({1, 6}), V).sum().backward();
    W.set_data(memory);
    W.mutable_grad() = at::ones_like(W);
    EXPECT_THAT([&] { opt.step(); }, throws(sentence));
    EXPECT_TRUE(same_bits(V, before)) << "a step happens as a whole or not at all";
  };
  refused(at::zeros({1, 6}).expand({4, 6}), "several elements in one place");
  refused(at::zeros({4, 1}).expand({4, 6}), "give it memory of its own with .contiguous()");
  refused(at::zeros({4, 6}, at::kHalf), "a parameter is Half");
  refused(at::zeros({4, 6}, at::kDouble), "is Double");
}

TEST(OtherMemory, ThatIsNoneTakesStepsWithoutNumbers) {
  at::Tensor W = at::zeros({4, 6}, at::kMeta).requires_grad_(), b = at::zeros({4}, at::kMeta).requires_grad_();
  for (const OptimizerOptions& options : {kAtStep, kInBackward}) {
    AdamW opt({W, b}, {}, options);
    for (int step = 0; step < 2; ++step) {
      opt.zero_grad();
      at::linear(at::zeros({3, 6}, at::kMeta), W, b).sum().backward();
      opt.step();
    }
    EXPECT_EQ(opt.state()[0].progress.step, 3);
    EXPECT_TRUE(opt.state()[0].moments.at(1).values.is_meta());
    EXPECT_EQ(opt.memory().state, 2 * 28 * 4);
  }
}

}  // namespace
}  // namespace forge
