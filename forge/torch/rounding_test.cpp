// What Optimizer::rounding() says of updates, and of steps that were skipped.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"
#include "forge/torch/testing/tensors.h"
#include "forge/torch/testing/tiny_model.h"

namespace forge {

void PrintTo(const RoundingCount& c, std::ostream* to) {
  *to << c.lost << " lost, " << c.saturated << " saturated, " << c.not_finite << " not finite of " << c.elements;
}

namespace {

using testing::parameter;
using testing::random;
using testing::same_bits;
using testing::throws;
using testing::TinyModel;

constexpr std::int64_t kElements = 64 * 128;

void backward_ones(const at::Tensor& W) {
  forge::linear(at::ones({1, W.size(1)}, W.scalar_type()), W).sum().backward();
}

TEST(RoundingReport, IsRefusedWhereNothingIsCounted) {
  AdamW opt({parameter(at::ones({2, 3}))});
  EXPECT_THAT([&] { opt.rounding(); }, throws("count_rounding"));
}

// Updates of 2⁻¹² of weights of 1, of which bf16's last place is 2⁻⁷.
TEST(RoundingReport, SaysWhatEachFormatLosesOfSmallUpdates) {
  auto lost = [](Format format) {
    at::Tensor W = parameter(at::ones({64, 128}, at::kBFloat16));
    SGD opt({W}, {.lr = 0x1p-12}, {.weight_format = format, .count_rounding = true});
    for (int step = 0; step < 3; ++step) {
      backward_ones(W);
      opt.step();
      opt.zero_grad();
    }
    RoundingReport r = opt.rounding();
    EXPECT_EQ(r.matrices.size(), 1u);
    EXPECT_EQ(r.of_weights().elements, 3 * kElements);
    EXPECT_EQ(r.of_moments(), RoundingCount{});
    EXPECT_EQ((r.by_format()[{"weight", format}]), r.of_weights());
    return r.of_weights().lost;
  };
  EXPECT_EQ(lost(Format::bf16), 3 * kElements);
  EXPECT_EQ(lost(Format::bf16_plus8), 0);
  EXPECT_EQ(lost(Format::bf16_plus16), 0);
  // Below 1 the last place is 2⁻⁸: kept with a probability of 1/16.
  double stochastic = static_cast<double>(lost(Format::bf16_stochastic)) / (3 * kElements);
  EXPECT_NEAR(stochastic, 15.0 / 16, 5 * std::sqrt(15.0 / 256 / (3 * kElements)));
}

TEST(RoundingReport, TellsParametersMomentsAndFormatsApart) {
  at::Tensor large = parameter(random({64, 128}, 1, at::kBFloat16)), vector = parameter(at::ones({5}));
  AdamW opt({large, vector}, {}, {.state_format = Format::int8, .count_rounding = true});
  backward_ones(large);
  vector.sum().backward();
  opt.step();
  std::vector<RoundedMatrix> matrices;
  for (const auto& [matrix, count] : opt.rounding().matrices) {
    matrices.push_back(matrix);
    EXPECT_EQ(count.elements, matrix.parameter == 0 ? kElements : 5);
  }
  EXPECT_THAT(matrices, ::testing::ElementsAre(
                            RoundedMatrix{0, "exp_avg", Format::int8}, RoundedMatrix{0, "exp_avg_sq", Format::int8},
                            RoundedMatrix{0, "weight", Format::bf16}, RoundedMatrix{1, "exp_avg", Format::fp32},
                            RoundedMatrix{1, "exp_avg_sq", Format::fp32}, RoundedMatrix{1, "weight", Format::fp32}));
  auto formats = opt.rounding().by_format();
  EXPECT_EQ((formats[{"exp_avg", Format::int8}].elements), kElements);
  EXPECT_EQ((formats[{"exp_avg", Format::fp32}].elements), 5);
  EXPECT_EQ(opt.rounding().of_weights().elements, kElements + 5);
  EXPECT_EQ(opt.rounding().by_matrix().size(), 6u);
}

TEST(RoundingReport, IsTheSameInBothSchedulesAndChangesNoBit) {
  std::vector<TinyModel> models;
  std::vector<RoundingReport> reports;
  for (Schedule schedule : {Schedule::at_step, Schedule::in_backward})
    for (bool count : {true, false}) {
      TinyModel& model = models.emplace_back(at::kBFloat16);
      AdamW opt(
          model.parameters(), {},
          {.schedule = schedule, .exact = true, .weight_format = Format::bf16_stochastic, .count_rounding = count});
      for (std::uint64_t step = 0; step < 3; ++step) {
        model.loss(TinyModel::batch(step)).backward();
        opt.step();
        opt.zero_grad();
      }
      if (count) reports.push_back(opt.rounding());
    }
  EXPECT_EQ(reports[0].matrices, reports[1].matrices);
  EXPECT_GT(reports[0].of_weights().lost, 0);
  for (const TinyModel& model : models)
    for (std::size_t i = 0; i < model.parameters().size(); ++i)
      EXPECT_TRUE(same_bits(model.parameters()[i], models[0].parameters()[i])) << "parameter " << i;
}

// ---- Steps that are skipped ---------------------------------------------------------------------------------------

// A weight whose gradient is infinite.
struct Overflown {
  at::Tensor W = parameter(at::ones({4, 6})), other = parameter(at::ones({4, 6}));
  SGD opt{{W, other}, {}, {.count_rounding = true}};

  void backward(float x) {
    forge::linear(at::full({1, 6}, x), W).sum().backward();
    forge::linear(at::full({1, 6}, x), other).sum().backward();
  }
};

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(RoundingReport, CountsAStepThatIsSkippedOnce) {
  Overflown m;
  for (int skipped = 1; skipped <= 2; ++skipped) {
    m.backward(kInf);
    EXPECT_THAT([&] { clip_grad_norm_({m.W, m.other}, 1, /*error_if_nonfinite=*/true); }, throws("norm"));
    EXPECT_FALSE(forge::gradient(m.W).finite().item<bool>());
    EXPECT_FALSE(forge::gradient(m.other).finite().item<bool>());
    EXPECT_EQ(m.opt.rounding().skipped_steps, skipped - 1) << "it may still happen";
    m.opt.zero_grad();
    EXPECT_EQ(m.opt.rounding().skipped_steps, skipped);
  }
  EXPECT_EQ(m.opt.rounding().of_weights(), RoundingCount{});
}

TEST(RoundingReport, DoesNotCountAStepThatHappened) {
  Overflown m;
  m.backward(1);
  EXPECT_TRUE(forge::gradient(m.W).finite().item<bool>());
  m.opt.zero_grad();
  EXPECT_EQ(m.opt.rounding().skipped_steps, 0) << "dropped for another reason";
  m.backward(kInf);
  clip_grad_norm_({m.W, m.other}, 1);
  m.opt.step();
  m.opt.zero_grad();
  EXPECT_EQ(m.opt.rounding().skipped_steps, 0);
  EXPECT_EQ(m.opt.rounding().of_weights(), (RoundingCount{48, 0, 0, 48}));
}

}  // namespace
}  // namespace forge
