#include "forge/torch/allocation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;

TEST(AllocationRecorder, CountsLiveAndPeakBytes) {
  at::Tensor before = at::empty({1000}, at::kByte), survivor;
  {
    AllocationRecorder recorder(500);
    before = at::Tensor();
    EXPECT_EQ(recorder.live_bytes(), 0) << "what was there before is not counted, nor its end";
    survivor = at::empty({600}, at::kByte);
    {
      at::Tensor t = at::empty({400}, at::kByte);
      EXPECT_EQ(recorder.live_bytes(), 1000);
    }
    EXPECT_EQ(recorder.live_bytes(), 600);
    EXPECT_EQ(recorder.peak_bytes(), 1000);
    recorder.reset_peak();
    EXPECT_EQ(recorder.peak_bytes(), 600);
    ASSERT_EQ(recorder.allocations().size(), 1);
    EXPECT_EQ(recorder.allocations()[0].bytes, 600);
  }
  survivor.resize_({100000}).fill_(1);
  EXPECT_EQ(survivor.sum().item<std::int64_t>(), 100000) << "a storage outlives the recorder that saw it";
}

TEST(AllocationRecorder, KnowsThePurpose) {
  AllocationRecorder recorder(0);
  at::Tensor a = at::empty({16}), b, c;
  {
    ScopedPurpose purpose(Purpose::state);
    {
      ScopedPurpose inner(Purpose::workspace);
      b = at::empty({16});
    }
    c = at::empty({16});
  }
  auto list = recorder.allocations();
  ASSERT_EQ(list.size(), 3);
  EXPECT_EQ(list[0].purpose, Purpose::other);
  EXPECT_EQ(list[1].purpose, Purpose::workspace);
  EXPECT_EQ(list[2].purpose, Purpose::state);
  EXPECT_STREQ(name_of(list[1].purpose), "workspace");
}

TEST(AllocationRecorder, MayBeNested) {
  AllocationRecorder outer;
  at::Tensor a, b;
  {
    AllocationRecorder inner;
    a = at::empty({100}, at::kByte);
    EXPECT_EQ(inner.live_bytes(), 100);
  }
  b = at::empty({50}, at::kByte);
  EXPECT_EQ(outer.live_bytes(), 150);
  a = at::Tensor();
  EXPECT_EQ(outer.live_bytes(), 50);
}

// ---- Contract 7 ---------------------------------------------------------------------------------------------------

// 13 tokens, well below the break-even of 48 · 80 / 128 = 30; no activation is as large as a dense gradient.
constexpr std::int64_t kOut = 80, kIn = 48, kTokens = 13;
constexpr std::size_t kDenseBytes = kOut * kIn * 4;

std::vector<Allocation> allocations_of_training(OptimizerOptions options, MemoryReport* peak) {
  at::Tensor up = parameter(random({kOut, kIn}, 1)), down = parameter(random({kIn, kOut}, 2));
  at::Tensor bias = parameter(at::zeros({kOut})), x = random({kTokens, kIn}, 3);
  AdamW opt({up, down, bias}, {}, options);
  auto step = [&] {
    opt.zero_grad();
    forge::linear(at::tanh(forge::linear(x, up, bias)), down).pow(2).sum().backward();
    if (options.schedule == Schedule::at_step) clip_grad_norm_({up, down, bias}, 1);
    opt.step();
  };
  step();  // makes the moments
  opt.reset_peak_memory();
  AllocationRecorder recorder(1);
  step();
  *peak = opt.peak_memory();
  return recorder.allocations();
}

// A dense gradient of a matrix, by its purpose or by its size.
bool is_dense_gradient(const Allocation& a) {
  bool by_size = a.bytes == kDenseBytes || a.bytes == kDenseBytes / 2;
  return a.purpose == Purpose::dense_matrix || (by_size && a.purpose != Purpose::workspace);
}

TEST(Contract, no_gradient_is_stored) {
  for (Schedule schedule : {Schedule::at_step, Schedule::in_backward}) {
    MemoryReport peak;
    auto list = allocations_of_training({.schedule = schedule}, &peak);
    EXPECT_FALSE(list.empty());
    EXPECT_TRUE(std::ranges::none_of(list, is_dense_gradient));
    EXPECT_EQ(peak.dense_matrices, 0);
    EXPECT_EQ(peak.dense_vectors, kOut * 4);
    EXPECT_EQ(peak.collapses, 0);
    EXPECT_GT(peak.held_terms, 0);
    EXPECT_LE(peak.held_terms, 2 * kTokens * (kIn + kOut) * 4);
  }
}

TEST(Contract, the_test_for_stored_gradients_can_fail) {
  MemoryReport peak;
  auto list = allocations_of_training({.collapse = Collapse::always}, &peak);
  EXPECT_EQ(std::ranges::count_if(list, is_dense_gradient), 2);
  EXPECT_EQ(peak.dense_matrices, 2 * static_cast<std::int64_t>(kDenseBytes));
  EXPECT_EQ(peak.held_terms, 0);
}

TEST(Optimizer, ReportsASharedInputOnce) {
  at::Tensor q = parameter(random({32, 32}, 1)), k = parameter(random({32, 32}, 2)), x = parameter(random({2, 32}, 3));
  SGD opt({q, k});
  at::Tensor h = x * 1;
  (forge::linear(h, q).pow(2).sum() + forge::linear(h, k).pow(2).sum()).backward();
  EXPECT_EQ(opt.memory().held_terms, 3 * 2 * 32 * 4) << "X and two dY";
  EXPECT_EQ(opt.memory().weights, 2 * 32 * 32 * 4);
  opt.zero_grad();
  EXPECT_EQ(opt.memory().held_terms, 0);
  EXPECT_EQ(opt.peak_memory().held_terms, 3 * 2 * 32 * 4);
}

}  // namespace
}  // namespace forge
