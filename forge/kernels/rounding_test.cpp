// What update counts of rounding: by hand, against the definition on every target, and that counting changes nothing.
#include "forge/kernels/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <ostream>
#include <vector>

#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/base/testing/refusal.h"
#include "forge/kernels/testing/harness.h"

namespace forge {

void PrintTo(const RoundingCount& c, std::ostream* to) {
  *to << c.lost << " lost, " << c.saturated << " saturated, " << c.not_finite << " not finite of " << c.elements;
}

namespace {

using namespace forge::testing;

constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargestBf16 = 0x1.FEp127f;

// ---- Refused ------------------------------------------------------------------------------------------------------

TEST(Rounding, AWrongNumberOfCountsIsRefused) {
  SerialExecutor serial;
  for (std::size_t n : {1u, 2u, 4u}) {
    Weight weight({2, 3}, {}, kRuleInfo<rules::AdamW>, [] { return 1.f; });
    std::vector<RoundingCount> counts(n);
    auto run = [&] { run_update({serial, Target::ref}, weight, {2, 3, {}}, step_of<rules::AdamW>({}, 1), counts); };
    EXPECT_TRUE(refuses(run, {"update", "rounding", std::to_string(n), "2 moments"}));
    EXPECT_EQ(weight.W.at(1, 2), 1);
  }
}

// ---- By hand ------------------------------------------------------------------------------------------------------

// What an update of one weight from `from` to `from + by` counts.
RoundingCount count_of(Target target, Format format, float from, float by) {
  SerialExecutor serial;
  Weight weight({1, 1}, {format}, kRuleInfo<rules::Sgd>, [&] { return from; });
  Buffer D(1, 1, DType::f32);
  D.set(0, 0, -by);
  Term term = Dense{D.view()};
  RoundingCount count;
  run_update({serial, target}, weight, {1, 1, std::span(&term, 1)}, step_of<rules::Sgd>({.lr = 1}, 1), {&count, 1});
  return count;
}

struct Row {
  Format format;
  float from, by;
  int lost, saturated, not_finite;
};

// bf16's last place is 2⁻⁷ at 1 and 2¹²⁰ at its largest number.
const Row kByHand[] = {
    {Format::bf16, 1, 0, 0, 0, 0},
    {Format::bf16, 1, 0x1p-9f, 1, 0, 0},
    {Format::bf16, 1, 0x1p-8f, 1, 0, 0},  // a tie, and 1 is even
    {Format::bf16, 1, 0x1.01p-8f, 0, 0, 0},
    {Format::bf16, 1, -0x1p-10f, 1, 0, 0},  // the last place below 1 is half as large
    {Format::bf16, 1, -0x1.01p-9f, 0, 0, 0},
    {Format::bf16, 0, 0x1p-126f, 0, 0, 0},
    {Format::bf16_plus8, 1, 0x1p-17f, 1, 0, 0},
    {Format::bf16_plus8, 1, 0x1p-15f, 0, 0, 0},
    {Format::bf16_plus16, 1, 0x1p-23f, 0, 0, 0},
    {Format::fp32, 1, 0x1p-23f, 0, 0, 0},
    {Format::fp32, 1, 0x1p-30f, 0, 0, 0},  // lost by fp32 itself: the result is the old number
    {Format::bf16, kLargestBf16, 0x1.FFp118f, 1, 0, 0},
    {Format::bf16, kLargestBf16, 0x1p119f, 0, 1, 0},
    {Format::bf16, -kLargestBf16, -0x1p119f, 0, 1, 0},
    {Format::bf16_stochastic, kLargestBf16, 0x1.FFp118f, 1, 0, 0},
    {Format::bf16_stochastic, kLargestBf16, 0x1p119f, 1, 1, 0},
    {Format::bf16_stochastic, -0x1.FCp127f, -0x1.8p120f, 0, 1, 0},
    {Format::bf16_plus8, kLargestBf16, 0x1.FFFEp119f, 0, 1, 0},
    {Format::bf16_plus8, kLargestBf16, 0x1.FEp119f, 0, 0, 0},
    {Format::bf16_plus16, kLargestBf16, 0x1.FFFEp119f, 0, 0, 0},
    {Format::fp32, kLargestBf16, 0x1.FFFEp119f, 0, 0, 0},
    {Format::bf16, kLargestBf16, kLargestBf16, 0, 0, 1},
    {Format::fp32, kLargestBf16, kLargestBf16, 0, 0, 1},
    {Format::fp32, 1, kNaN, 0, 0, 1},
    {Format::bf16, 1, kNaN, 0, 0, 1},
    {Format::bf16_stochastic, 1, -kInf, 0, 0, 1},
    {Format::bf16_plus16, 1, kNaN, 0, 0, 1},
    {Format::bf16, kInf, 1, 0, 0, 1},  // the same infinity is not lost
};

TEST(Rounding, ByHand) {
  for (Target target : available_targets())
    for (const Row& r : kByHand) {
      RoundingCount expected = {1, r.lost, r.saturated, r.not_finite};
      EXPECT_EQ(count_of(target, r.format, r.from, r.by), expected)
          << name_of(target) << ", " << name_of(r.format) << ", " << r.from << " by " << r.by;
    }
}

// A constant update of a part of bf16's last place is kept with that probability.
TEST(Rounding, StochasticRoundingLosesTheShareItShould) {
  constexpr Shape kShape = {64, 1024};
  constexpr double kElements = 64 * 1024;
  SerialExecutor serial;
  for (double part : {0.0625, 0.25, 0.5}) {
    Weight weight(kShape, {Format::bf16_stochastic}, kRuleInfo<rules::Sgd>, [] { return 1.5f; });
    Buffer D = Buffer(kShape.out, kShape.in, DType::f32).fill([&] { return static_cast<float>(-part * 0x1p-7); });
    Term term = Dense{D.view()};
    RoundingCount count;
    run_update({serial, best_target()}, weight, {kShape.out, kShape.in, std::span(&term, 1)},
               step_of<rules::Sgd>({.lr = 1}, 1), {&count, 1});
    EXPECT_NEAR(static_cast<double>(count.lost) / kElements, 1 - part, 5 * std::sqrt(part * (1 - part) / kElements));
  }
}

// A block's scale follows its largest number, and one result that is not finite makes NaN of all 32.
TEST(Rounding, OfABlockThatBecomesNaNTheRestCountsAtTheNextUpdate) {
  constexpr Shape kShape = {1, 64};
  SerialExecutor serial;
  for (Format format : {Format::int8, Format::fp8}) {
    Weight weight(kShape, {Format::fp32, format}, kRuleInfo<rules::SgdMomentum>, [] { return 1.f; });
    Buffer D = Buffer(1, kShape.in, DType::f32).fill([] { return 1.f; });
    D.set(0, 5, kNaN);
    Term term = Dense{D.view()};
    for (std::int64_t not_finite : {1, 32}) {
      RoundingCount counts[2];
      run_update({serial, best_target()}, weight, {1, kShape.in, std::span(&term, 1)},
                 step_of<rules::SgdMomentum>({.momentum = 0.5}, 2), counts);
      EXPECT_EQ(counts[1].not_finite, not_finite) << name_of(format);
      D.set(0, 5, 1);
    }
  }
}

// ---- By definition, for every format, target and executor ---------------------------------------------------------

std::vector<float> numbers_of(const Weight& weight, std::size_t matrix) {
  return matrix == 0 ? weight.W.numbers() : weight.S[matrix - 1].numbers();
}

// In float64, where half a last place beyond the largest number is one.
bool is_saturated(Format format, double result, double after) {
  if (!std::isfinite(result)) return false;
  bool clamps = format == Format::bf16_stochastic;
  return std::isinf(after) || (clamps && std::abs(result) - kLargestBf16 >= 0x1p119);
}

RoundingCount defined_count(Format format, const std::vector<float>& before, const std::vector<float>& result,
                            const std::vector<float>& after) {
  RoundingCount count;
  for (std::size_t j = 0; j < before.size(); ++j) {
    ++count.elements;
    count.lost += result[j] != before[j] && after[j] == before[j];
    count.saturated += is_saturated(format, result[j], after[j]);
    count.not_finite += !std::isfinite(result[j]);
  }
  return count;
}

// The same numbers in fp32, so that an update stores the rule's results.
Weight in_fp32(const Weight& weight, Shape shape, const RuleInfo& rule) {
  std::vector<float> all;
  for (std::size_t i = 0; i <= weight.S.size(); ++i) {
    std::vector<float> numbers = numbers_of(weight, i);
    all.insert(all.end(), numbers.begin(), numbers.end());
  }
  auto next = all.begin();
  return Weight(shape, {}, rule, [&] { return *next++; });
}

// Mostly of usual size; at the beginning of W near the largest numbers.
Weight unlike_each_other(Shape shape, Storage storage, const RuleInfo& rule, Random& random) {
  std::int64_t large = shape.in;
  return Weight(shape, storage, rule,
                [&] { return large-- > 0 && random.below(2) ? random.sign() * kLargestBf16 : random.uniform(-1, 1); });
}

void compare(const Place& place, Shape shape, Storage storage, const RuleStep& rule, std::vector<RoundingCount>& seen) {
  SCOPED_TRACE(::testing::Message() << name_of(place.target) << ", " << shape.out << " × " << shape.in << ", "
                                    << storage << ", " << rule.name());
  Random random(131);
  const Weight before = unlike_each_other(shape, storage, rule.rule(), random);
  Weight counted = before, silent = before, exact = in_fp32(before, shape, rule.rule());
  Buffer D = Buffer(shape.out, shape.in, DType::f32).fill([&] {
    return random.below(50) == 0 ? kNaN : random.below(9) == 0 ? 0x1p119f * random.sign() : random.uniform(-0.01, 0.01);
  });
  std::vector<Term> terms = {Dense{D.view()}};
  Expression G = {shape.out, shape.in, terms};
  std::vector<RoundingCount> counts(1 + before.S.size(), RoundingCount{5, 4, 3, 2});  // which are added to
  run_update(place, counted, G, rule, counts);
  run_update(place, silent, G, rule);
  run_update(place, exact, G, rule);
  EXPECT_TRUE(same_bits(counted, silent)) << "counting changes bits";
  for (std::size_t i = 0; i < counts.size(); ++i) {
    RoundingCount count = defined_count(i == 0 ? storage.weight : storage.state, numbers_of(before, i),
                                        numbers_of(exact, i), numbers_of(counted, i));
    seen[static_cast<std::size_t>(i == 0 ? storage.weight : storage.state)] += count;
    count += {5, 4, 3, 2};
    EXPECT_EQ(counts[i], count) << "matrix " << i;
  }
}

TEST(Rounding, IsCountedAsDefinedOnEveryTargetAndExecutor) {
  const RuleStep rules[] = {step_of<rules::SgdMomentum>({.lr = 1, .momentum = 0.5}, 2),
                            step_of<rules::AdamWAmsgrad>({.lr = 1e-3}, 2)};
  std::vector<RoundingCount> seen(kFormatCount);
  for (Target target : available_targets())
    for (const auto& executor : executors())
      for (Shape shape : {Shape{1, 1}, Shape{7, 17}, Shape{37, 515}, Shape{2, 4100}, Shape{0, 5}})
        for (const Storage& storage : storages())
          for (const RuleStep& rule : rules) compare({executor.executor, target}, shape, storage, rule, seen);
  for (int f = 0; f < kFormatCount; ++f) {
    const RoundingCount& count = seen[static_cast<std::size_t>(f)];
    bool lossless = Format(f) == Format::fp32 || Format(f) == Format::bf16_plus16;
    EXPECT_EQ(count.lost == 0, lossless) << name_of(Format(f));
    EXPECT_GT(count.not_finite, 0) << name_of(Format(f));
    if (Format(f) == Format::bf16 || Format(f) == Format::bf16_stochastic) {
      EXPECT_GT(count.saturated, 0) << name_of(Format(f));
    }
    if (lossless) {
      EXPECT_EQ(count.saturated, 0) << name_of(Format(f));
    }
  }
}

}  // namespace
}  // namespace forge
