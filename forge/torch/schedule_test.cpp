#include <ATen/ATen.h>

#include <vector>

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

struct Outcome {
  std::vector<at::Tensor> tensors;  // weights and moments
};

template <class Opt, class Rule>
Outcome train(const OptimizerOptions& options, at::ScalarType dtype, Rule rule, int steps = 4) {
  TinyModel model(dtype);
  Opt opt(model.parameters(), rule, options);
  for (int step = 0; step < steps; ++step) {
    opt.zero_grad();
    model.loss(TinyModel::batch(step)).backward();
    opt.step();
  }
  Outcome outcome;
  for (const ParameterState& s : opt.state()) {
    EXPECT_EQ(s.progress.step, steps + 1);
    outcome.tensors.push_back(s.parameter.detach());
    for (const StoredTensor& moment : s.moments) outcome.tensors.push_back(moment.values);
  }
  return outcome;
}

void expect_same(const Outcome& a, const Outcome& b) {
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (std::size_t i = 0; i < a.tensors.size(); ++i) EXPECT_TRUE(same_bits(a.tensors[i], b.tensors[i])) << i;
}

TEST(Optimizer, AllSchedulesAndCollapsesGiveTheSameBits) {
  for (auto dtype : {at::kFloat, at::kBFloat16}) {
    auto adamw = [&](OptimizerOptions o) { return train<AdamW>(o, dtype, AdamWOptions{.lr = 0.01}); };
    Outcome two_phase = adamw({.collapse = Collapse::always});
    expect_same(adamw({.collapse = Collapse::never}), two_phase);
    expect_same(adamw({.exact = true}), two_phase);
    expect_same(adamw({.schedule = Schedule::in_backward}), two_phase);
    expect_same(adamw({.schedule = Schedule::in_backward, .collapse = Collapse::always}), two_phase);
    auto sgd = [&](OptimizerOptions o) { return train<SGD>(o, dtype, SgdOptions{.lr = 0.1, .momentum = 0.9}); };
    expect_same(sgd({.schedule = Schedule::in_backward}), sgd({.collapse = Collapse::always}));
    expect_same(sgd({.collapse = Collapse::never}), sgd({.collapse = Collapse::always}));
  }
}

TEST(Optimizer, LearnsAsAtLinearDoes) {
  // The same model where nothing is recorded: every gradient comes through .grad, from torch's GEMM.
  TinyModel recorded, ordinary;
  AdamW opt(recorded.parameters(), {.lr = 0.01}), opt2(ordinary.parameters(), {.lr = 0.01});
  for (at::Tensor& p : std::vector{ordinary.table, ordinary.up, ordinary.down})
    p.register_hook([](const at::Tensor& g) { return g; });
  double loss = 0, loss2 = 0;
  for (int step = 0; step < 10; ++step) {
    opt.zero_grad();
    opt2.zero_grad();
    at::Tensor l = recorded.loss(TinyModel::batch(0)), l2 = ordinary.loss(TinyModel::batch(0));
    l.backward();
    l2.backward();
    loss = l.item<double>();
    loss2 = l2.item<double>();
    opt.step();
    opt2.step();
  }
  EXPECT_TRUE(forge::gradient(ordinary.up).empty());
  EXPECT_NEAR(loss / loss2, 1, 1e-5);
}

TEST(InBackward, dx_is_taken_before_the_update) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = parameter(random({3, 8}, 2)), dY = random({3, 4}, 3);
  at::Tensor expected = dY.mm(W.detach());
  SGD opt({W}, {.lr = 10}, {.schedule = Schedule::in_backward});
  forge::linear(x, W).backward(dY);
  EXPECT_FALSE(dY.mm(W.detach()).equal(expected)) << "the weight has not moved";
  EXPECT_TRUE(same_bits(x.grad(), expected));
}

TEST(InBackward, AWeightUsedTwiceTakesBothInputGradientsFromTheOldWeight) {
  at::Tensor W = parameter(random({8, 8}, 1)), W2 = parameter(W), x = parameter(random({3, 8}, 2)), x2 = parameter(x);
  SGD opt({W}, {.lr = 10}, {.schedule = Schedule::in_backward});
  forge::linear(forge::linear(x, W), W).sum().backward();
  at::linear(at::linear(x2, W2), W2).sum().backward();
  EXPECT_TRUE(within(x.grad(), x2.grad(), at::full({3, 8}, 1e-5)));
  EXPECT_EQ(opt.state()[0].progress.step, 2);
  EXPECT_TRUE(forge::gradient(W).empty());
}

TEST(InBackward, ASecondBackwardBeforeStepRaisesAndChangesNothing) {
  at::Tensor W = parameter(random({4, 8}, 1)), b = parameter(random({4}, 2)), x = random({3, 8}, 3);
  SGD opt({W, b}, {}, {.schedule = Schedule::in_backward});
  auto backward = [&](const at::Tensor& y) { y.sum().backward(); };
  backward(forge::linear(x, W, b));
  EXPECT_FALSE(b.grad().defined());
  at::Tensor W_after = W.detach().clone(), b_after = b.detach().clone();
  EXPECT_THAT([&] { backward(forge::linear(x, W, b)); },
              throws("call both after each backward, or use the schedule at_step"));
  EXPECT_THAT([&] { backward(b * 2); }, throws("second backward"));
  EXPECT_THAT([&] { backward(x.mm(W.t())); }, throws("second backward"));
  EXPECT_TRUE(same_bits(W, W_after));
  EXPECT_TRUE(same_bits(b, b_after));
  EXPECT_FALSE(W.grad().defined() || b.grad().defined()) << "a refused gradient must not come back at the next step";
  EXPECT_TRUE(forge::gradient(W).empty());
  opt.step();
  EXPECT_NO_THROW(backward(forge::linear(x, W, b)));
  EXPECT_EQ(opt.state()[1].progress.step, 3);
}

TEST(InBackward, TakesTermsAndDotGradOfOneWeightInOneUpdate) {
  at::Tensor W = parameter(random({4, 8}, 1)), W2 = parameter(W), x = random({3, 8}, 2);
  SGD opt({W}, {.lr = 1}, {.schedule = Schedule::in_backward});
  SGD opt2({W2}, {.lr = 1});
  (forge::linear(x, W) + x.mm(W.t()) * 2).sum().backward();
  (forge::linear(x, W2) + x.mm(W2.t()) * 2).sum().backward();
  opt2.step();
  EXPECT_EQ(opt.state()[0].progress.step, 2);
  EXPECT_TRUE(same_bits(W, W2));
}

TEST(InBackward, AGraphThatSavedTheOldWeightRaises) {
  at::Tensor W = parameter(random({4, 8}, 1)), x = parameter(random({3, 8}, 2));
  SGD opt({W}, {}, {.schedule = Schedule::in_backward});
  at::Tensor later = x.mm(W.t());
  forge::linear(x, W).sum().backward();
  opt.step();
  EXPECT_THROW(later.sum().backward(), c10::Error);
}

TEST(InBackward, DroppedTermsOfAFailedBackwardDoNotComeBack) {
  at::Tensor W = parameter(random({8, 8}, 1)), V = parameter(random({8, 8}, 2)), before = W.detach().clone();
  SGD opt({W, V}, {}, {.schedule = Schedule::in_backward});
  at::Tensor h = forge::linear(random({2, 8}, 3), W);
  h.register_hook([](const at::Tensor&) -> at::Tensor { fail("stop"); });
  at::Tensor y = forge::linear(h, V) + forge::linear(h * 2, V);
  EXPECT_THAT([&] { y.sum().backward(); }, throws("stop"));
  opt.zero_grad();
  EXPECT_TRUE(forge::gradient(V).empty());
  EXPECT_TRUE(same_bits(W, before));
}

TEST(InBackward, RefusesToClip) {
  at::Tensor W = parameter(random({4, 8}, 1));
  SGD opt({W}, {}, {.schedule = Schedule::in_backward});
  forge::linear(random({3, 8}, 2), W).sum().backward();
  EXPECT_THAT([&] { clip_grad_norm_({W}, 1); }, throws("applied unclipped"));
}

TEST(AtStep, GradientsStayUntilZeroGrad) {
  at::Tensor W = parameter(at::zeros({2, 2})), b = parameter(at::zeros({2}));
  SGD opt({W, b}, {.lr = 1});
  forge::linear(at::ones({1, 2}), W, b).sum().backward();
  opt.step();
  opt.step();
  EXPECT_TRUE(W.equal(at::full({2, 2}, -2.f)) && b.equal(at::full({2}, -2.f)));
  opt.zero_grad();
  opt.step();
  EXPECT_TRUE(W.equal(at::full({2, 2}, -2.f)) && b.equal(at::full({2}, -2.f)));
}

}  // namespace
}  // namespace forge
