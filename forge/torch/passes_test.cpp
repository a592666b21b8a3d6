// Optimizers that take several passes over a weight: no gradient is stored for them either, and all is as with one.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "forge/torch/allocation.h"
#include "forge/torch/functional.h"
#include "forge/torch/make_optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::throws;

const char* const kOptimizers[] = {"cautiousadamw", "stableadamw", "lamb", "muon", "adafactor", "adalomo"};

std::unique_ptr<GroupedOptimizer> optimizer_of(const char* name, const at::Tensor& W, const OptimizerOptions& options) {
  ParamGroup<RuleValues> group;
  group.params = {W};
  return make_optimizer(name, {group}, options);
}

// W after three steps; fused: through the record, else from a .grad that was multiplied out.
at::Tensor trained(const char* name, bool fused, OptimizerOptions options) {
  at::Tensor W = parameter(random({48, 96}, 1));
  auto optimizer = optimizer_of(name, W, options);
  for (int step = 0; step < 3; ++step) {
    at::Tensor X = random({5, 96}, 10 + step), dY = random({5, 48}, 20 + step);
    if (fused) {
      forge::linear(X, W).backward(dY);
    } else {
      at::Tensor D = at::zeros({48, 96});  // the chain of the kernels
      for (std::int64_t t = 0; t < 5; ++t)
        for (std::int64_t r = 0; r < 48; ++r)
          for (std::int64_t c = 0; c < 96; ++c)
            D.accessor<float, 2>()[r][c] =
                std::fma(dY.accessor<float, 2>()[t][r], X.accessor<float, 2>()[t][c], D.accessor<float, 2>()[r][c]);
      W.mutable_grad() = D;
    }
    optimizer->step();
    optimizer->zero_grad();
  }
  return W.detach();
}

TEST(Passes, OfAFusedWeightGiveTheBitsOfAStoredGradient) {
  for (const char* name : kOptimizers) {
    at::Tensor stored = trained(name, false, {});
    EXPECT_TRUE(same_bits(trained(name, true, {}), stored)) << name;
    EXPECT_TRUE(same_bits(trained(name, true, {.schedule = Schedule::in_backward}), stored)) << name;
    bool fp32_whatever_is_asked = name == std::string("adafactor") || name == std::string("adalomo");
    EXPECT_EQ(same_bits(trained(name, true, {.state_format = Format::int8}), stored), fp32_whatever_is_asked) << name;
    EXPECT_FALSE(same_bits(stored, random({48, 96}, 1))) << name;
  }
}

TEST(Passes, StoreNoGradient) {
  constexpr std::int64_t kN = 1024;
  for (const char* name : kOptimizers) {
    at::Tensor W = parameter(random({kN, kN}, 1)), X = random({2, kN}, 2);
    auto optimizer = optimizer_of(name, W, {.schedule = Schedule::in_backward});
    forge::linear(X, W).sum().backward();
    optimizer->step();  // the state is there
    optimizer->zero_grad();
    AllocationRecorder recorder(std::size_t{kN * kN});
    forge::linear(X, W).sum().backward();
    std::int64_t largest = 0;
    for (const Allocation& a : recorder.allocations()) {
      EXPECT_TRUE(a.purpose == Purpose::direction && name == std::string("muon")) << name << ": " << name_of(a.purpose);
      largest = std::max(largest, static_cast<std::int64_t>(a.bytes));
    }
    EXPECT_EQ(largest, name == std::string("muon") ? kN * kN * 4 : 0) << name;
    EXPECT_LT(recorder.live_bytes(), kN * kN) << name;
  }
}

TEST(Passes, OfRowsAndColumnsTakeVectorsToo) {
  for (const char* name : {"adafactor", "adalomo"}) {
    at::Tensor p = parameter(random({40}, 1));
    auto optimizer = optimizer_of(name, p, {});
    p.mutable_grad() = random({40}, 2);
    optimizer->step();
    ASSERT_EQ(optimizer->state()[0].moments.size(), 1u) << name;
    EXPECT_EQ(optimizer->state()[0].moments[0].values.sizes(), p.sizes()) << name;
    EXPECT_FALSE(same_bits(p, random({40}, 1))) << name;
    for (const at::Tensor& other : {at::zeros({2, 3, 4}), at::zeros({3, 4}).t()})
      EXPECT_THAT([&] { optimizer_of(name, parameter(other), {}); }, throws("contiguous vectors and matrices"));
  }
}

TEST(Passes, OfMuonAreForMatricesOnly) {
  for (const at::Tensor& p : {at::zeros({4}), at::zeros({2, 3, 4}), at::zeros({3, 4}).t()})
    EXPECT_THAT([&] { Muon({parameter(p)}); }, throws("contiguous matrices"));
}

}  // namespace
}  // namespace forge
