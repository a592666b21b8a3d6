// That the host does not wait for the GPU, and what becomes of a gradient's scale that it therefore does not know.
#include <ATen/ATen.h>

#include <cmath>
#include <functional>
#include <vector>

#include "forge/torch/gram.h"
#include "forge/torch/make_optimizer.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"
#include "forge/torch/whole_gradient.h"
#include "tests/emulator/gpu/device.h"
#include "tests/emulator/gpu/gradients.h"

namespace forge {
namespace {

using emulator::fill;
using emulator::kCpu;
using emulator::kGpu;
using testing::parameter;
using testing::random;
using testing::same_bits;

TEST(Gpu, ANearlyCancellingNormComesFromTheChainUnasked) {
  at::Tensor dY = random({1, 40}, 1), X = random({1, 30}, 2);
  Gradient G({40, 30}, at::kFloat, kGpu);
  G.set_policy(Collapse::never, true);
  G.add_outer(at::cat({dY, -dY}).to(kGpu), at::cat({X, X * (1 + 0x1p-12)}).to(kGpu));
  GramCache cache;
  EXPECT_EQ(gram_sum_squares(G.expression(), cache, kGpu)->holds.item<float>(), 0);
  const std::int64_t before = emulator::read_backs();
  at::Tensor sum = G.sum_squares(/*exact=*/false);
  EXPECT_EQ(emulator::read_backs(), before);
  EXPECT_NEAR(sum.item<double>() / G.sum_squares(/*exact=*/true).item<double>(), 1, 1e-5);
}

// One element 1e19 · x · scale; X in the second token is what makes the bound too large, where it is not zero.
TEST(Gpu, WhatIsNotFiniteIsFoundWithoutWaiting) {
  struct Case {
    float x, other;
    double scale;
    bool finite;
  };
  const Case cases[] = {{1, 0, 1, true},         {INFINITY, 0, 1, false},  {NAN, 0, 1, false},
                        {1e19f, 3e19f, 1, true}, {1e19f, 0, 3, true},      {1e19f, 0, 4, false},
                        {1, 0, INFINITY, false}, {1, 0, NAN, false},       {4e19f, 0, 1, false},
                        {4e19f, 0, 0.5, false},  {1e19f, 3e19f, 0.1, true}};
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.x << ", " << c.other << ", " << c.scale);
    Gradient G({40, 30}, at::kFloat, kGpu);
    at::Tensor dY = at::zeros({2, 40}), X = at::zeros({2, 30});
    dY[0][3] = 1e19f, dY[1][3] = 1e-30f, X[0][7] = c.x, X[1][8] = c.other;
    dY[1][4] = c.other > 0 ? 1e18f : 0;
    G.add_outer(dY.to(kGpu), X.to(kGpu));
    at::Tensor factor = at::full({}, c.scale).to(kGpu);
    const std::int64_t before = emulator::read_backs();
    G.mul_(factor);
    at::Tensor finite = G.finite();
    EXPECT_EQ(emulator::read_backs(), before);
    EXPECT_EQ(finite.item<bool>(), c.finite);
  }
}

// A GPU's arithmetic gives one NaN.
bool same_numbers(const at::Tensor& a, const at::Tensor& b) {
  return a.isnan().equal(b.isnan()) && same_bits(a.nan_to_num(), b.nan_to_num());
}

// What is done to a gradient after a factor that only its device knows, beside the CPU.
TEST(Gpu, AFactorOfTheDevicesIsOneOfTheGradientAsItStands) {
  const std::vector<std::int64_t> sizes = {140, 40};
  using Use = std::function<void(Gradient&)>;
  auto term = [&](Gradient& G, std::uint64_t seed) {
    G.add_outer(random({3, 140}, seed).to(G.place().device), random({3, 40}, seed + 1).to(G.place().device));
  };
  const Use uses[] = {[](Gradient&) {},
                      [](Gradient& G) { G.mul_(0.3); },
                      [](Gradient& G) { G.mul_(at::full({}, 0.7, at::kDouble).to(G.place().device)); },
                      [](Gradient& G) { G.collapse(); },
                      [](Gradient& G) { G.expose(); },
                      [](Gradient& G) { G.expose(), G.mul_(at::full({1}, 0.7f).to(G.place().device)); },
                      [&](Gradient& G) { term(G, 30); },
                      [](Gradient& G) { G.add_(G, 0.25); },
                      [](Gradient& G) {
                        auto copy = G.clone();
                        G.clear();
                        G.add_(*copy);
                      }};
  for (float factor : {0.4f, 1.f, 0.f, INFINITY, NAN})
    for (std::size_t i = 0; i < std::size(uses); ++i) {
      SCOPED_TRACE(::testing::Message() << factor << ", use " << i);
      std::vector<at::Tensor> found;
      for (at::Device device : {kGpu, kCpu}) {
        Gradient G(sizes, at::kFloat, device);
        fill(G, 4, sizes);
        at::Tensor number = at::full({}, factor).to(device);
        G.mul_(number);
        number.fill_(17);
        uses[i](G);
        found.push_back(G.materialize().to(kCpu));
      }
      EXPECT_TRUE(same_numbers(found[0], found[1]));
    }
}

// On a GPU torch would round the factor to the 16 bits of what it scales; this one's operations are the CPU's and do
// not.
TEST(Gpu, AFactorOfTheDevicesHas32BitsForDense16Too) {
  at::Tensor before = random({140, 40}, 1, at::kBFloat16), factor = at::full({}, 0.7f);
  at::Tensor expected = before.to(at::kFloat).mul(factor).to(at::kBFloat16);
  Gradient G(before.sizes(), at::kBFloat16, kGpu);
  G.add_dense(before.to(kGpu));
  at::Tensor exposed = G.expose();
  G.mul_(factor.to(kGpu));
  EXPECT_TRUE(same_bits(exposed.to(kCpu), expected));
  at::Tensor W = parameter(before.to(kGpu));
  W.mutable_grad() = before.to(kGpu);
  WholeGradient(W, nullptr).mul_(factor.to(kGpu));
  EXPECT_TRUE(same_bits(W.grad().to(kCpu), expected));
}

TEST(Gpu, OnlyWhatDividesAFactorOutAgainWaits) {
  Gradient G({140, 40}, at::kFloat, kGpu);
  fill(G, 4, {140, 40});
  at::Tensor factor = at::full({}, 0.5).to(kGpu), dY = random({3, 140}, 1).to(kGpu), X = random({3, 40}, 2).to(kGpu);
  auto read_backs = [before = emulator::read_backs()] { return emulator::read_backs() - before; };
  G.mul_(factor);
  G.mul_(factor);
  G.mul_(0.5);
  G.materialize();
  EXPECT_EQ(read_backs(), 0);
  G.add_outer(dY, X);
  G.add_outer(dY, X);
  EXPECT_EQ(read_backs(), 1);
  EXPECT_EQ(G.scale().read(), 0.3f * 0.125f);
}

// ---- Steps --------------------------------------------------------------------------------------------------------

struct Clipped {
  std::vector<double> norms;
  std::vector<at::Tensor> parameters;  // on the CPU
  std::int64_t read_backs = 0;
};

// Two matrices and a vector with two micro-batches' gradients, of which the first is multiplied on the host; clipped.
template <class Optimizer>
Clipped clipped(at::Device device, at::ScalarType dtype, const OptimizerOptions& options) {
  std::vector<at::Tensor> parameters;
  const std::vector<std::vector<std::int64_t>> shapes = {{140, 40}, {300, 64}, {50}};
  for (std::size_t i = 0; i < shapes.size(); ++i)
    parameters.push_back(parameter(random(shapes[i], i, dtype).to(device)));
  Optimizer optimizer(parameters, {}, options);
  std::vector<at::Tensor> norms;
  const std::int64_t before = emulator::read_backs();
  for (std::uint64_t step = 0; step < 3; ++step) {
    for (std::uint64_t seed : {8 * step + 10, 8 * step + 14}) {
      for (int i = 0; i < 2; ++i) {
        at::Tensor dY = random({3, parameters[i].size(0)}, seed, dtype),
                   X = random({3, parameters[i].size(1)}, seed + 1);
        forge::gradient(parameters[i]).add_outer(dY.to(device), X.to(device));
        if (seed % 8 == 2) forge::gradient(parameters[i]).mul_(0.3);
      }
    }
    parameters[2].mutable_grad() = random({50}, step, dtype).to(device);
    norms.push_back(clip_grad_norm_(parameters, 0.5));
    optimizer.step();
    optimizer.zero_grad();
  }
  Clipped run;
  run.read_backs = emulator::read_backs() - before;
  for (const at::Tensor& norm : norms) run.norms.push_back(norm.item<double>());
  for (const at::Tensor& p : parameters) run.parameters.push_back(p.detach().to(kCpu));
  return run;
}

template <class Optimizer>
void expect_bits_of_the_cpu(at::ScalarType dtype, OptimizerOptions options) {
  options.exact = true;
  for (Collapse collapse : {Collapse::automatic, Collapse::never, Collapse::always}) {
    options.collapse = collapse;
    Clipped gpu = clipped<Optimizer>(kGpu, dtype, options), cpu = clipped<Optimizer>(kCpu, dtype, options);
    EXPECT_EQ(gpu.read_backs, 0);
    EXPECT_EQ(gpu.norms, cpu.norms);
    EXPECT_GT(cpu.norms[0], 0.5);
    for (std::size_t i = 0; i < gpu.parameters.size(); ++i)
      EXPECT_TRUE(same_bits(gpu.parameters[i], cpu.parameters[i])) << i;
  }
}

TEST(Gpu, AClippedStepHasTheBitsOfTheCpuAndDoesNotWait) {
  expect_bits_of_the_cpu<AdamW>(at::kFloat, {});  // fused
  expect_bits_of_the_cpu<AdamW>(at::kBFloat16, {.state_format = Format::int8});
  expect_bits_of_the_cpu<AdamW>(at::kBFloat16, {.state_format = Format::fp8, .weight_format = Format::bf16_plus8});
  expect_bits_of_the_cpu<RAdam>(at::kBFloat16, {.weight_format = Format::bf16_plus16});  // by slabs
  expect_bits_of_the_cpu<SGD>(at::kFloat, {});
}

}  // namespace
}  // namespace forge
