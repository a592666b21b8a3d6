// How weights and moments are kept, through the optimizers.
#include <ATen/ops/embedding.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::throws;

// One update of W from a linear layer.
void backward(const at::Tensor& W, std::uint64_t seed) {
  forge::linear(random({3, W.size(1)}, seed, W.scalar_type()), W).pow(2).sum().backward();
}

TEST(Formats, TakeTheBytesThatTheyPromise) {
  struct Row {
    Format weight, state;
    double bytes_per_element;
  };
  for (const Row& r :
       {Row{Format::bf16, Format::bf16, 6}, Row{Format::bf16_plus8, Format::int8, 5.125},
        Row{Format::bf16_stochastic, Format::int8, 4.125}, Row{Format::bf16_plus16, Format::fp8, 6.125}}) {
    at::Tensor W = parameter(random({64, 128}, 1, at::kBFloat16));
    AdamW opt({W}, {}, {.state_format = r.state, .weight_format = r.weight});
    backward(W, 2);
    opt.step();
    MemoryReport m = opt.memory();
    EXPECT_EQ(static_cast<double>(m.weights + m.state) / static_cast<double>(W.numel()), r.bytes_per_element)
        << name_of(r.weight) << ", " << name_of(r.state);
  }
}

TEST(Formats, KeepSmallMatricesVectorsAndEmbeddingsInFp32UnlessTheirGroupAsks) {
  at::Tensor large = parameter(random({64, 64}, 1)), small = parameter(random({63, 65}, 2)),
             vector = parameter(random({8192}, 3)), table = parameter(random({64, 64}, 4)),
             crowded = parameter(random({64, 64}, 7)), asked = parameter(random({4, 8}, 5));
  AdamW opt({{.params = {large, small, vector, table, crowded}}, {.params = {asked}, .state_format = Format::int8}},
            {.state_format = Format::int8});
  for (const at::Tensor& W : {large, small, asked}) backward(W, 6);
  vector.sum().backward();
  forge::embedding(at::arange(5, at::kLong), table).sum().backward();
  std::int64_t collapses = opt.memory().collapses;
  forge::embedding(at::arange(200, at::kLong).remainder(64), crowded).sum().backward();
  EXPECT_EQ(opt.memory().collapses, collapses + 1) << "more rows than the table has";
  opt.step();
  std::vector<Format> formats;
  for (const ParameterState& s : opt.state()) formats.push_back(s.moments[1].format);
  EXPECT_THAT(formats, ::testing::ElementsAre(Format::int8, Format::fp32, Format::fp32, Format::fp32, Format::fp32,
                                              Format::int8));
  EXPECT_EQ(opt.state()[0].moments[0].values.scalar_type(), at::kChar);
  EXPECT_EQ(opt.state()[0].moments[1].values.scalar_type(), at::kByte);
  EXPECT_EQ(opt.state()[0].moments[1].rest.sizes(), (at::IntArrayRef{64, 2}));
}

TEST(Formats, WithSixteenMoreBitsTheWeightIsThatOfFp32) {
  at::Tensor whole = parameter(random({64, 128}, 1, at::kBFloat16).to(at::kFloat)),
             split = parameter(whole.to(at::kBFloat16));
  AdamW opt({whole}, {.lr = 1e-2}),
      opt2({split}, {.lr = 1e-2}, {.state_format = Format::fp32, .weight_format = Format::bf16_plus16});
  for (int step = 0; step < 5; ++step) {
    at::Tensor G = random({64, 128}, static_cast<std::uint64_t>(10 + step), at::kBFloat16).to(at::kFloat);
    whole.mutable_grad() = G;
    forge::gradient(split).add_dense(G);
    opt.step();
    opt2.step();
    opt.zero_grad();
    opt2.zero_grad();
    at::Tensor back =
        in_format({Format::bf16_plus16, split.detach(), opt2.state()[0].low}, Format::fp32, Sign::any).values;
    EXPECT_TRUE(same_bits(back, whole)) << "step " << step;
  }
}

TEST(Formats, StochasticRoundingRepeatsWithItsSeedAndDiffersWithoutIt) {
  auto run = [](std::uint64_t seed) {
    at::Tensor W = parameter(random({64, 128}, 1, at::kBFloat16));
    SGD opt({W}, {.lr = 1e-3}, {.weight_format = Format::bf16_stochastic, .seed = seed});
    for (int step = 0; step < 3; ++step) {
      backward(W, 5);
      opt.step();
      opt.zero_grad();
    }
    return W.detach().clone();
  };
  at::Tensor once = run(1);
  EXPECT_TRUE(same_bits(once, run(1)));
  EXPECT_FALSE(same_bits(once, run(2)));
}

TEST(Formats, ASmallUpdateIsLostInBf16AndKeptOtherwise) {
  // lr 2⁻¹² of a weight of 1, whose last place in bf16 is 2⁻⁷.
  for (Format format : {Format::bf16, Format::bf16_stochastic, Format::bf16_plus8, Format::bf16_plus16}) {
    at::Tensor W = parameter(at::ones({64, 128}, at::kBFloat16));
    SGD opt({W}, {.lr = 0x1p-12}, {.weight_format = format});
    for (int step = 0; step < 64; ++step) {
      forge::linear(at::ones({1, 128}, at::kBFloat16), W).sum().backward();
      opt.step();
      opt.zero_grad();
    }
    double mean = W.to(at::kDouble).mean().item<double>();
    if (format == Format::bf16)
      EXPECT_EQ(mean, 1);
    else
      EXPECT_NEAR(mean, 1 - 0x1p-6, 0x1p-9) << name_of(format);
  }
}

}  // namespace
}  // namespace forge
