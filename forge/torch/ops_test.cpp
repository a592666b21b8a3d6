#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <vector>

#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::throws;

template <class Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void adamw_step(const at::Tensor& w, const at::Tensor& m, const at::Tensor& v, std::vector<at::Tensor> dY,
                std::vector<at::Tensor> X, std::int64_t step = 1) {
  using Signature = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList, at::TensorList,
                         std::int64_t, double, double, double, double, double, bool, double);
  op<Signature>("forge::adamw_step_").call(w, m, v, dY, X, step, 1e-2, 0.9, 0.999, 1e-8, 0.01, false, 1.0);
}

at::Tensor materialize(std::vector<at::Tensor> dY, std::vector<at::Tensor> X, double scale = 1) {
  return op<at::Tensor(at::TensorList, at::TensorList, double)>("forge::materialize").call(dY, X, scale);
}

TEST(Ops, RefuseWrongInputsAndWriteNothing) {
  at::Tensor w = random({4, 8}, 1), m = at::zeros({4, 8}), before = w.clone();
  at::Tensor dY = random({3, 4}, 2), X = random({3, 8}, 3);
  EXPECT_THAT([&] { adamw_step(w, m, at::zeros({8, 4}), {dY}, {X}); }, throws("a moment is [8, 4], expected [4, 8]"));
  EXPECT_THAT([&] { adamw_step(w, m, at::zeros({4, 8}, at::kBFloat16), {dY}, {X}); }, throws("one dtype"));
  at::Tensor half = at::zeros({4, 8}, at::kHalf);
  EXPECT_THAT([&] { adamw_step(w, half, half, {dY}, {X}); }, throws("a moment is Half, expected Float or BFloat16"));
  EXPECT_THAT([&] { adamw_step(w, m, m, {dY}, {}); }, throws("1 dY and 0 X"));
  EXPECT_THAT([&] { adamw_step(w, m, m, {dY}, {dY}); }, throws("X is [3, 4], expected (T, 8)"));
  EXPECT_THAT([&] { adamw_step(w, m, m, {dY}, {X}, 0); }, throws("step is 0"));
  EXPECT_THAT([&] { adamw_step(w.t(), m.t(), m.t(), {X}, {dY}); }, throws("contiguous"));
  EXPECT_THAT([&] { adamw_step(w.to(at::kMeta), m, m, {dY}, {X}); }, throws("weight is on meta"));
  EXPECT_THAT([&] { materialize({}, {}); }, throws("no term"));
  EXPECT_TRUE(same_bits(w, before));
}

TEST(Ops, AdamwStepIsTheOptimizersStep) {
  at::Tensor dY = random({3, 4}, 2), X = random({3, 8}, 3), W = parameter(random({4, 8}, 1));
  at::Tensor w = W.detach().clone(), m = at::zeros({4, 8}), v = at::zeros({4, 8});
  AdamW opt({W}, {.lr = 1e-2});
  for (int step = 1; step <= 3; ++step) {
    opt.zero_grad();
    forge::gradient(W).add_outer(dY, X);
    opt.step();
    std::int64_t version = w._version();
    adamw_step(w, m, v, {dY}, {X}, step);
    EXPECT_GT(w._version(), version);
  }
  EXPECT_TRUE(same_bits(W, w));
  EXPECT_TRUE(same_bits(opt.state()[0].moments[1].values, v));
}

TEST(Ops, SgdStepWantsABufferExactlyWithMomentum) {
  using Signature = void(const at::Tensor&, const std::optional<at::Tensor>&, at::TensorList, at::TensorList,
                         std::int64_t, double, double, double, double, bool, bool, double);
  auto sgd = op<Signature>("forge::sgd_step_");
  at::Tensor w = at::zeros({2, 2}), buffer = at::zeros({2, 2}), one = at::ones({1, 2});
  auto step = [&](std::optional<at::Tensor> b, double momentum, std::int64_t number) {
    sgd.call(w, b, std::vector{one}, std::vector{one}, number, 1.0, momentum, 0, 0, false, false, 0.5);
  };
  EXPECT_THAT([&] { step(std::nullopt, 0.9, 1); }, throws("and no momentum_buffer"));
  EXPECT_THAT([&] { step(buffer, 0, 1); }, throws("and a momentum_buffer"));
  step(std::nullopt, 0, 1);
  EXPECT_TRUE(w.equal(at::full({2, 2}, -0.5f)));
  step(buffer, 0.5, 1);
  step(buffer, 0.5, 2);
  EXPECT_TRUE(buffer.equal(at::full({2, 2}, 0.75f)));
  EXPECT_TRUE(w.equal(at::full({2, 2}, -1.75f)));
}

TEST(Ops, MaterializeAndSumSquaresTakeTermsInOrder) {
  at::Tensor dY = random({4, 6}, 1), X = random({4, 9}, 2);
  at::Tensor whole = materialize({dY}, {X}, 0.5);
  EXPECT_TRUE(
      same_bits(materialize({dY.slice(0, 0, 1), dY.slice(0, 1)}, {X.slice(0, 0, 1), X.slice(0, 1)}, 0.5), whole));
  auto sum_squares = op<double(at::TensorList, at::TensorList, double, bool)>("forge::sum_squares");
  double expected = whole.to(at::kDouble).pow(2).sum().item<double>();
  EXPECT_NEAR(sum_squares.call(std::vector{dY}, std::vector{X}, 0.5, true) / expected, 1, 1e-12);
}

TEST(Ops, LinearAndEmbeddingRecord) {
  at::Tensor W = parameter(random({16, 32}, 1));
  SGD opt({W});
  auto linear = op<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>("forge::linear");
  linear.call(random({3, 32}, 2), W, std::nullopt).sum().backward();
  EXPECT_EQ(forge::gradient(W).size(), 1);
  auto embedding = op<at::Tensor(const at::Tensor&, const at::Tensor&, std::int64_t)>("forge::embedding");
  embedding.call(at::zeros({2}, at::kLong), W, -1).sum().backward();
  EXPECT_EQ(forge::gradient(W).size(), 2);
}

}  // namespace
}  // namespace forge
