// forge/torch on the emulated GPU, beside the CPU.
#include <ATen/ATen.h>

#include <cmath>
#include <string>
#include <vector>

#include "forge/kernels/register_optimizer.h"
#include "forge/kernels/testing/rule_cases.h"
#include "forge/kernels/testing/weight.h"
#include "forge/torch/executor.h"
#include "forge/torch/gpu_kernels.h"
#include "forge/torch/make_optimizer.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"
#include "forge/torch/testing/tiny_model.h"
#include "forge/torch/update_tensor.h"
#include "tests/emulator/gpu/device.h"
#include "tests/emulator/gpu/gradients.h"

namespace forge {
namespace {

using emulator::fill;
using emulator::kCpu;
using emulator::kGpu;
using testing::parameter;
using testing::random;
using testing::RuleCase;
using testing::same_bits;
using testing::Storage;
using testing::throws;
using testing::TinyModel;

TEST(EmulatedGpu, ComputesWhatTheCpuDoes) {
  at::Tensor a = random({5, 7}, 1), b = random({7, 3}, 2);
  at::Tensor c = a.to(kGpu).mm(b.to(kGpu)).t().contiguous();
  EXPECT_EQ(c.device(), kGpu);
  EXPECT_TRUE(same_bits(c.to(kCpu), a.mm(b).t().contiguous()));
}

TEST(EmulatedGpuDeathTest, StopsAHostThatLooksAtItsMemory) {
  at::Tensor t = at::ones({4}, kGpu);
  EXPECT_DEATH((void)*static_cast<volatile float*>(t.data_ptr()), "");
}

// ---- One weight ---------------------------------------------------------------------------------------------------

struct Updated {
  StoredTensor weight;
  std::vector<StoredTensor> moments;

  Updated(const RuleInfo& rule, const Storage& storage, at::IntArrayRef sizes, at::Device device) {
    at::Tensor values = random(sizes, 9, storage.weight == Format::fp32 ? at::kFloat : at::kBFloat16).to(device);
    weight = {storage.weight, values, zeros_of_rest(values, storage.weight)};
    for (const Moment& m : rule.moments) moments.push_back(zeros_of_moment(values, m, storage.state));
  }
  void expect_as(const Updated& other) const {
    EXPECT_TRUE(same(weight, other.weight));
    for (std::size_t i = 0; i < moments.size(); ++i) EXPECT_TRUE(same(moments[i], other.moments[i])) << "moment " << i;
  }

 private:
  static ::testing::AssertionResult same(const StoredTensor& a, const StoredTensor& b) {
    auto values = same_bits(a.values.to(kCpu), b.values.to(kCpu));
    return values && a.rest.defined() ? same_bits(a.rest.to(kCpu), b.rest.to(kCpu)) : values;
  }
};

constexpr Noise kNoise = {.seed = 5, .parameter = 77, .step = 3};

Updated updated(const RuleCase& rule, const Storage& storage, at::Device device) {
  const std::vector<std::int64_t> sizes = {140, 40};
  Updated u(rule.prepare(1).rule(), storage, sizes, device);
  for (std::int64_t step = 1; step <= 2; ++step) {
    Gradient G(u.weight.values);
    fill(G, 10 * static_cast<std::uint64_t>(step), sizes);
    update_tensor(u.weight, kNoise, u.moments, G.expression(), rule.prepare(step), /*exact=*/true);
  }
  return u;
}

TEST(Gpu, UpdatesHaveTheBitsOfTheCpusForEveryRule) {
  const Storage storages[] = {
      {Format::fp32, Format::fp32}, {Format::bf16_stochastic, Format::int8}, {Format::bf16_plus8, Format::bf16}};
  int i = 0;
  for (const RuleCase& rule : testing::rule_cases()) {
    if (rule.prepare(1).rule().orthogonalized) continue;  // by torch's own products
    const Storage& storage = storages[i++ % 3];
    SCOPED_TRACE(::testing::Message() << rule.name << ", " << storage);
    const std::int64_t before = emulator::read_backs();
    Updated gpu = updated(rule, storage, kGpu);
    const bool waits = rule.prepare(1).rule().with_lines != nullptr;
    EXPECT_EQ(emulator::read_backs() > before, waits);
    gpu.expect_as(updated(rule, storage, kCpu));
  }
  EXPECT_GE(i, 40);
}

// With slabs of one tile beside the CPU.
class BySlabs {
 public:
  template <class F>
  Updated on(at::Device device, const RuleStep& rule, F&& f) {
    const std::vector<std::int64_t> sizes = {300, 40};
    Updated u(rule.rule(), {Format::bf16_stochastic, Format::int8}, sizes, device);
    Gradient G(u.weight.values);
    fill(G, 4, sizes);
    std::vector<Stored> moments;
    for (std::size_t k = 0; k < u.moments.size(); ++k) {
      const Moment& m = rule.rule().moments[k];
      moments.push_back(u.moments[k].view({m.rows(300), m.cols(40)}));
    }
    f(device == kGpu ? gpu_ : kernels_of(at::kCPU), forge::Place{device, true}, u.weight.view({300, 40}, kNoise),
      std::span<const Stored>(moments), G.expression());
    return u;
  }

 private:
  GpuKernels gpu_{cuda::operations(), /*slab_bytes=*/1};
};

TEST(Gpu, WhatHasNoFusedKernelIsMultipliedOutBySlabs) {
  BySlabs slabs;
  const RuleStep rules[] = {testing::step_of<rules::RAdam>({}, 7), testing::step_of<rules::LambMoments>({}, 2),
                            testing::step_of<rules::AdafactorSums>({}, 2)};
  for (const RuleStep& rule : rules) {
    SCOPED_TRACE(rule.name());
    auto update = [&](const DeviceKernels& kernels, const forge::Place& place, const Stored& W,
                      std::span<const Stored> S, const Expression& G) {
      std::optional<Pass> pass = Pass{rule, {}};
      while (pass) pass = kernels.update(place, W, S.first(pass->rule.moments()), G, *pass, {});
    };
    slabs.on(kGpu, rule, update).expect_as(slabs.on(kCpu, rule, update));
  }
}

TEST(Gpu, SumsOfLinesAreTakenBySlabs) {
  BySlabs slabs;
  std::vector<std::vector<double>> found;
  auto sum = [&](const DeviceKernels& kernels, const forge::Place& place, const Stored&, std::span<const Stored>,
                 const Expression& G) {
    std::vector<double> of_rows(300), of_columns(40);
    kernels.sum_squares_of_lines(place, G, of_rows, of_columns);
    found.push_back(of_rows);
    found.push_back(of_columns);
  };
  for (at::Device device : {kGpu, kCpu}) slabs.on(device, testing::step_of<rules::Sgd>({}, 1), sum);
  EXPECT_EQ(found[0], found[2]);
  EXPECT_EQ(found[1], found[3]);
}

// ---- Gradients ----------------------------------------------------------------------------------------------------

double norm_of(const Gradient& G, bool exact) { return G.sum_squares(exact).item<double>(); }

TEST(Gpu, AGradientIsMultipliedOutAndMeasuredAsOnTheCpu) {
  Gradient gpu({140, 40}, at::kFloat, kGpu), cpu({140, 40}, at::kFloat, kCpu);
  for (Gradient* G : {&gpu, &cpu}) fill(*G, 4, {140, 40});
  EXPECT_TRUE(same_bits(gpu.materialize().to(kCpu), cpu.materialize()));
  EXPECT_EQ(norm_of(gpu, /*exact=*/true), norm_of(cpu, /*exact=*/true));
  EXPECT_TRUE(gpu.finite().item<bool>());
  EXPECT_TRUE(same_bits(gpu.clone()->expose().to(kCpu), cpu.clone()->expose()));
  for (Gradient* G : {&gpu, &cpu}) G->zero_();
  EXPECT_EQ(gpu.sum_squares(true).item<double>(), 0);
}

TEST(Gpu, NormsByGramAreThoseOfTheChain) {
  for (auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    Gradient G({140, 40}, at::kFloat, kGpu);
    for (std::uint64_t seed : {1, 2}) {
      G.add_outer(random({5, 140}, seed, dtype).to(kGpu), random({5, 40}, seed + 4, dtype).to(kGpu));
      G.mul_(0.5);
    }
    G.add_rows(at::tensor({2, 7, 2}, at::kLong).to(kGpu), random({3, 40}, 9, dtype).to(kGpu));
    GramCache cache;
    auto by_gram = gram_sum_squares(G.expression(), cache, kGpu);
    ASSERT_TRUE(by_gram);
    EXPECT_EQ(by_gram->holds.item<float>(), 1);
    double scale = G.scale().read(), sum = by_gram->value.item<double>() * scale * scale;
    EXPECT_NEAR(sum, norm_of(G, /*exact=*/true), 1e-5 * sum);
    EXPECT_EQ(norm_of(G, /*exact=*/false), sum);
  }
}

TEST(Gpu, MoreTermsThanAKernelTakesAreMultipliedOut) {
  Gradient gpu({20, 12}, at::kFloat, kGpu), cpu({20, 12}, at::kFloat, kCpu);
  for (Gradient* G : {&gpu, &cpu}) {
    G->set_policy(Collapse::never, true);
    for (std::uint64_t i = 0; i < cuda::kMostTerms + 5; ++i)
      G->add_outer(random({1, 20}, i).to(G->place().device), random({1, 12}, i + 500).to(G->place().device));
  }
  EXPECT_EQ(gpu.collapses(), 1);
  EXPECT_EQ(gpu.size(), 6U);
  EXPECT_TRUE(same_bits(gpu.materialize().to(kCpu), cpu.materialize()));
}

// ---- Training -----------------------------------------------------------------------------------------------------

struct Run {
  std::vector<double> losses;
  std::vector<at::Tensor> parameters;  // on the CPU
  MemoryReport peak;
  std::int64_t read_backs = 0;
};

template <class Optimizer>
Run train(at::Device device, at::ScalarType dtype, const OptimizerOptions& options, double max_norm) {
  TinyModel model(dtype, device);
  Optimizer optimizer(model.parameters(), {}, options);
  Run run;
  std::vector<at::Tensor> losses;  // and norms
  const std::int64_t before = emulator::read_backs();
  for (std::uint64_t step = 0; step < 4; ++step) {
    const int micro_batches = options.schedule == Schedule::at_step ? 2 : 1;
    for (int i = 0; i < micro_batches; ++i) {
      at::Tensor loss = model.loss(TinyModel::batch(2 * step + static_cast<std::uint64_t>(i)).to(device));
      losses.push_back(loss.detach());
      loss.backward();
    }
    if (max_norm > 0) losses.push_back(clip_grad_norm_(model.parameters(), max_norm));
    optimizer.step();
    optimizer.zero_grad();
  }
  run.read_backs = emulator::read_backs() - before;
  for (const at::Tensor& loss : losses) run.losses.push_back(loss.item<double>());
  for (const at::Tensor& p : model.parameters()) run.parameters.push_back(p.detach().to(kCpu));
  run.peak = optimizer.peak_memory();
  return run;
}

// torch's own operations may take another way on a GPU, so their last bits differ.
void expect_close(const Run& a, const Run& b, double tolerance) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (std::size_t i = 0; i < a.losses.size(); ++i) EXPECT_NEAR(a.losses[i], b.losses[i], tolerance * b.losses[i]);
  double changed = 0, differs = 0;
  TinyModel start;
  for (std::size_t i = 0; i < a.parameters.size(); ++i) {
    at::Tensor from = start.parameters()[i].detach(), to = b.parameters[i].to(at::kFloat);
    changed += (to - from).pow(2).sum().item<double>();
    differs += (a.parameters[i].to(at::kFloat) - to).pow(2).sum().item<double>();
  }
  EXPECT_GT(changed, 0);
  EXPECT_LE(std::sqrt(differs), 100 * tolerance * std::sqrt(changed));
  EXPECT_EQ(a.read_backs, 0) << "of the GPU";
  EXPECT_EQ(a.peak.dense_matrices, b.peak.dense_matrices);
  EXPECT_EQ(a.peak.held_terms, b.peak.held_terms);
}

TEST(Gpu, AModelTrainsAsOnTheCpu) {
  for (Schedule schedule : {Schedule::at_step, Schedule::in_backward})
    for (bool exact : {true, false}) {
      SCOPED_TRACE(::testing::Message() << "in backward " << (schedule == Schedule::in_backward) << ", exact "
                                        << exact);
      OptimizerOptions options = {.schedule = schedule, .collapse = Collapse::never, .exact = exact};
      double max_norm = schedule == Schedule::at_step ? 0.5 : 0;
      expect_close(train<AdamW>(kGpu, at::kFloat, options, max_norm), train<AdamW>(kCpu, at::kFloat, options, max_norm),
                   1e-6);
      expect_close(train<SGD>(kGpu, at::kFloat, options, max_norm), train<SGD>(kCpu, at::kFloat, options, max_norm),
                   1e-6);
    }
}

TEST(Gpu, AModelOf16BitsTrainsOnTensorCores) {
  OptimizerOptions options = {
      .collapse = Collapse::never, .state_format = Format::int8, .weight_format = Format::bf16_plus16};
  expect_close(train<AdamW>(kGpu, at::kBFloat16, options, 0.5), train<AdamW>(kCpu, at::kBFloat16, options, 0.5), 2e-3);
}

TEST(Gpu, MuonMakesItsDirectionsThere) {
  auto step = [](at::Device device) {
    std::vector<at::Tensor> matrices;
    for (std::uint64_t i = 0; i < 3; ++i) matrices.push_back(parameter(random({6, 5}, i).to(device)));
    Muon opt(matrices);
    for (const at::Tensor& m : matrices) m.pow(2).sum().backward();
    opt.step();
    return at::stack(matrices).to(kCpu);
  };
  EXPECT_TRUE(at::allclose(step(kGpu), step(kCpu), 1e-5, 1e-6));
}

int launches_of_rows = 0;

TEST(Gpu, VectorsOfAGroupAreUpdatedInOneLaunch) {
  cuda::Operations counting = cuda::operations();
  counting.update_rows = [](std::span<const cuda::WeightInMemory> weights, const RuleStep& rule,
                            const cuda::Launch& launch) {
    ++launches_of_rows;
    cuda::operations().update_rows(weights, rule, launch);
  };
  auto step = [](at::Device device) {
    std::vector<at::Tensor> vectors;
    for (std::uint64_t i = 0; i < 9; ++i)
      vectors.push_back(parameter(random({20}, i, i % 2 ? at::kBFloat16 : at::kFloat).to(device)));
    std::vector<ParamGroup<AdamWOptions>> groups(2);
    groups[0].params = {vectors.begin(), vectors.begin() + 7};
    groups[1].params = {vectors.begin() + 7, vectors.end()};
    groups[1].options.weight_decay = 0;
    AdamW opt(groups);
    for (int step = 0; step < 2; ++step) {
      for (const at::Tensor& v : vectors) v.pow(2).sum().backward();
      opt.step();
      opt.zero_grad();
    }
    for (at::Tensor& v : vectors) v = v.detach().to(kCpu, at::kFloat);
    return at::stack(vectors);
  };
  add_gpu(at::kPrivateUse1, counting);
  at::Tensor found = step(kGpu);
  add_gpu(at::kPrivateUse1, cuda::operations());
  EXPECT_EQ(launches_of_rows, 4);  // two steps, two groups
  EXPECT_TRUE(same_bits(found, step(kCpu)));
}

// ---- Refusals -----------------------------------------------------------------------------------------------------

struct OwnOptions : SgdOptions {
  static constexpr const char* kName = "OwnSgd";
};
struct OwnSgd : rules::Sgd {
  using Options = OwnOptions;
  static constexpr const char* kName = "own_sgd";
};
FORGE_REGISTER_OPTIMIZER(OwnOptions, OwnSgd);

TEST(Gpu, RefusesWhatHasNoKernelWhenTheOptimizerIsMade) {
  at::Tensor W = parameter(random({8, 8}, 1).to(kGpu));
  std::vector<ParamGroup<RuleValues>> groups(1);
  groups[0].params = {W};
  EXPECT_THAT([&] { make_optimizer("OwnSgd", groups, {}); },
              throws("own_sgd has no kernel for a GPU, where rules of one's own are not there yet"));
  EXPECT_THAT([&] { AdamW opt({W}, {}, {.count_rounding = true}); }, throws("rounding is not counted on a GPU"));
}

TEST(Gpu, RefusesAGradientOnAnotherDevice) {
  Gradient G({8, 4}, at::kFloat, kCpu);
  EXPECT_THAT(
      [&] {
        G.add_outer(random({2, 8}, 1).to(kGpu), random({2, 4}, 2).to(kGpu));
      },
      throws("dY is on emulated:0 and the parameter was on cpu when its optimizer was made"));
  at::Tensor meta = at::empty({2, 8}, at::kMeta);
  EXPECT_THAT([&] { G.add_outer(meta, meta); }, throws("built without kernels"));
}

TEST(Gpu, StateMovesBetweenFormats) {
  StoredTensor cpu = random({5, 70}, 3), gpu = cpu.values.to(kGpu);
  StoredTensor a = in_format(cpu, Format::int8, Sign::any), b = in_format(gpu, Format::int8, Sign::any);
  EXPECT_EQ(b.values.device(), kGpu);
  EXPECT_TRUE(same_bits(a.values, b.values.to(kCpu)));
  EXPECT_TRUE(same_bits(a.rest, b.rest.to(kCpu)));
}

}  // namespace
}  // namespace forge
