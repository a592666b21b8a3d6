// Backward passes of several threads, on shared and on separate weights: no gradient is lost or torn.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <barrier>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::within;

constexpr int kThreads = 4;

// More under `make stress`, which also runs this under the thread sanitizer.
int backward_passes() {
  const char* asked = std::getenv("FORGE_STRESS");
  return asked ? std::atoi(asked) : 50;
}

struct Case {
  bool shared, embedding;
  Collapse collapse;
};

std::string name_of(const Case& c) {
  std::string name = c.shared ? "shared" : "own";
  name += c.embedding ? "_embedding" : "_linear";
  return c.collapse == Collapse::never ? name + "_terms_kept" : name;
}

class Threads : public ::testing::TestWithParam<Case> {};

// Each pass adds numbers whose sum in fp32 has no rounding, whatever the order.
void one_backward(const Case& c, const at::Tensor& W, int number) {
  if (c.embedding) {
    at::Tensor index = at::full({3}, number % W.size(0), at::kLong);
    return at::embedding(W, index).sum().backward();
  }
  at::linear(at::full({2, W.size(1)}, static_cast<float>(number % 8)), W).sum().backward();
}

at::Tensor sum_of_passes(const Case& c, const at::Tensor& W, int passes, int threads) {
  at::Tensor sum = at::zeros_like(W);
  for (int number = 0; number < passes; ++number)
    if (c.embedding)
      sum[number % W.size(0)] += 3 * threads;
    else
      sum += 2 * (number % 8) * threads;
  return sum;
}

void in_threads(const std::function<void(int)>& work) {
  std::barrier start(kThreads);
  std::vector<std::jthread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      at::set_num_threads(1);
      start.arrive_and_wait();
      work(t);
    });
}

TEST_P(Threads, AllGradientsAreTheirSum) {
  const Case& c = GetParam();
  int passes = backward_passes(), before = at::get_num_threads();
  at::set_num_threads(1);
  std::vector<at::Tensor> weights;
  std::vector<std::unique_ptr<SGD>> optimizers;
  for (int t = 0; t < (c.shared ? 1 : kThreads); ++t) {
    weights.push_back(parameter(at::zeros({12, 16})));
    optimizers.push_back(std::make_unique<SGD>(std::vector{weights.back()}, SgdOptions{.lr = 1},
                                               OptimizerOptions{.collapse = c.collapse}));
  }
  in_threads([&](int t) {
    for (int i = 0; i < passes; ++i) one_backward(c, weights[c.shared ? 0 : static_cast<std::size_t>(t)], i);
  });
  at::Tensor expected = sum_of_passes(c, weights[0], passes, c.shared ? kThreads : 1);
  for (const at::Tensor& W : weights) EXPECT_TRUE(forge::gradient(W).materialize().equal(expected));
  at::set_num_threads(before);
}

INSTANTIATE_TEST_SUITE_P(All, Threads,
                         ::testing::Values(Case{true, false, Collapse::automatic}, Case{true, false, Collapse::never},
                                           Case{true, true, Collapse::automatic}, Case{true, true, Collapse::never},
                                           Case{false, false, Collapse::automatic}, Case{false, false, Collapse::never},
                                           Case{false, true, Collapse::automatic}, Case{false, true, Collapse::never}),
                         [](const auto& info) { return name_of(info.param); });

TEST(Threads, OneOptimizerEachTrainsAsAlone) {
  auto train = [](int number) {
    at::Tensor W = parameter(testing::random({16, 16}, static_cast<std::uint64_t>(number)));
    AdamW opt({W}, {.lr = 0.1});
    for (int i = 0; i < backward_passes() / 5; ++i) {
      opt.zero_grad();
      at::linear(testing::random({4, 16}, 7), W).pow(2).sum().backward();
      clip_grad_norm_({W}, 1);
      opt.step();
    }
    return W.detach();
  };
  std::vector<at::Tensor> together(kThreads);
  in_threads([&](int t) { together[static_cast<std::size_t>(t)] = train(t); });
  for (int t = 0; t < kThreads; ++t) EXPECT_TRUE(testing::same_bits(together[static_cast<std::size_t>(t)], train(t)));
}

TEST(Threads, OfOneBackwardInBackwardUpdateOnceOrRaise) {
  for (int round = 0; round < 10; ++round) {
    at::Tensor W = parameter(at::zeros({12, 16}));
    SGD opt({W}, {.lr = 1}, {.schedule = Schedule::in_backward});
    std::atomic<int> refused = 0;
    in_threads([&](int) {
      try {
        at::linear(at::ones({2, 16}), W).sum().backward();
      } catch (const Error&) {
        ++refused;
      }
    });
    // Terms of passes that are under way together are applied together; a pass that comes after an update is refused.
    auto applied = static_cast<int>(-W[0][0].item<float>() / 2);
    EXPECT_TRUE(W.equal(at::full({12, 16}, -2.f * static_cast<float>(applied))));
    EXPECT_GE(applied, 1);
    EXPECT_GE(applied + refused, 1);
    EXPECT_LE(applied + refused, kThreads);
  }
}

}  // namespace
}  // namespace forge
