// What a storage format promises over many steps of a rule: it adds no drift, no preferred sign, and no more error than
// its roundings sum up to.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"
#include "forge/rules/testing/cases.h"

namespace forge {
namespace {

using namespace forge::testing;

// W is random, the moments are zero: a weight that has not been updated.
Weight fresh(Shape shape, Storage storage, const RuleInfo& rule, Random& random) {
  std::int64_t left = shape.out * shape.in;
  return Weight(shape, storage, rule, [&] { return left-- > 0 ? random.uniform(-1, 1) : 0.f; });
}

void step(Weight& weight, Shape shape, std::span<const Term> terms, const RuleStep& rule, std::int64_t t) {
  SerialExecutor serial;
  weight.W.noise.step = t;
  run_update({serial, best_target()}, weight, {shape.out, shape.in, terms}, rule);
}

// The rule's steps 1, …, n.
template <class Rule>
std::vector<RuleStep> steps_of(const typename Rule::Options& options, std::int64_t n) {
  std::vector<RuleStep> all;
  for (Progress p; p.step <= n; p = next_progress<Rule>(options, p))
    all.push_back(RuleStep::of<Rule>(prepare_pass<Rule>(options, p)));
  return all;
}

// ---- Nothing happens where nothing happens ---------------------------------------------------------------

template <class Options>
Options without_decay(Options options) {
  Options::fields(options, [](const Field& field, auto& value) {
    for (const char* decay : {"weight_decay", "lambd"})
      if (std::string(field.name) == decay) value = {};
  });
  return options;
}

constexpr Shape kSmall = {2, 41};

bool rests(Storage storage, const std::vector<RuleStep>& rule, std::size_t n) {
  Random random(101);
  Weight weight = fresh(kSmall, storage, rule[0].rule(), random), before = weight;
  Buffer zeros(kSmall.out, kSmall.in, DType::f32);
  Term zero = Dense{zeros.view()};
  for (std::size_t t = 0; t < n; ++t)
    step(weight, kSmall, std::span(&zero, 1), rule[t], static_cast<std::int64_t>(t) + 1);
  before.W.noise = weight.W.noise;
  return bool{same_bits(weight, before)};
}

TEST(FormatContract, AZeroGradientLeavesAFreshWeightAsItIs) {
  std::set<std::string> resting;
  for_each_case([&]<class Rule>(const Case<Rule>& c) {
    bool long_run = std::string(Rule::kName) == "adamw" || std::string(Rule::kName) == "sgd_momentum";
    std::size_t n = long_run ? 1000 : 20;
    std::vector<RuleStep> rule = steps_of<Rule>(without_decay(c.options), static_cast<std::int64_t>(n));
    if (!rests({}, rule, 3)) return;
    resting.insert(Rule::kName);
    for (const Storage& storage : storages()) EXPECT_TRUE(rests(storage, rule, n)) << c.name << ", " << storage;
  });
  // Adagrad begins at initial_accumulator_value, Adamax at eps, Rprop at its first step size; ASGD averages W, and
  // Muon's first pass makes a matrix that is no weight. AdaLomo adds eps to squares, and divides by nothing else.
  const std::set<std::string> starting = {"adagrad",       "adamax",  "rprop",          "asgd",
                                          "muon_momentum", "adalomo", "adalomo_vector", "adalomo_vector_sums"};
  RuleList::for_each(
      [&]<class Rule>() { EXPECT_NE(resting.contains(Rule::kName), starting.contains(Rule::kName)) << Rule::kName; });
  std::vector<RuleStep> decaying = steps_of<rules::AdamW>({.weight_decay = 10}, 20);
  for (const Storage& storage : storages()) EXPECT_FALSE(rests(storage, decaying, 20)) << "decay is seen: " << storage;
}

// ---- No sign is preferred --------------------------------------------------------------------------------

bool mirrored(float a, float b) { return same_number(a, -b) || (a == 0 && b == 0); }

bool mirrored(const StoredBuffer& a, const StoredBuffer& b) {
  std::vector<float> x = a.numbers(), y = b.numbers();
  bool negated = a.sign() == Sign::any;
  return std::equal(x.begin(), x.end(), y.begin(),
                    [&](float p, float q) { return negated ? mirrored(p, q) : same_number(p, q); });
}

// W and −W with persistent gradients G and −G: do W, its change with it, and signed moments stay mirrored, the others
// equal? `spoil` is done to both after every step.
template <class Spoil>
bool mirrors(Storage storage, const std::vector<RuleStep>& rule, Spoil&& spoil) {
  Random random(102);
  Weight plus = fresh(kSmall, storage, rule[0].rule(), random), minus = plus;
  for (std::int64_t r = 0; r < kSmall.out; ++r) {
    std::vector<float> row = plus.W.row(r);
    for (float& w : row) w = -w;
    minus.W.noise.step = plus.W.noise.step;
    minus.W.set_row(r, row);
  }
  // A row of ones, and one of different magnitudes.
  Buffer G(kSmall.out, kSmall.in, DType::f32), negated = G;
  for (std::int64_t c = 0; c < kSmall.in; ++c)
    for (std::int64_t r = 0; r < kSmall.out; ++r) {
      float g = r == 0 ? 1.f : random.log_uniform(-3, 1);
      G.set(r, c, g);
      negated.set(r, c, -g);
    }
  Term up = Dense{G.view()}, down = Dense{negated.view()};
  for (std::size_t t = 0; t < rule.size(); ++t) {
    step(plus, kSmall, std::span(&up, 1), rule[t], static_cast<std::int64_t>(t) + 1);
    step(minus, kSmall, std::span(&down, 1), rule[t], static_cast<std::int64_t>(t) + 1);
    spoil(plus), spoil(minus);
  }
  bool all = mirrored(plus.W, minus.W);
  for (std::size_t k = 0; k < plus.S.size(); ++k) all = all && mirrored(plus.S[k], minus.S[k]);
  return all;
}

constexpr auto kNothing = [](Weight&) {};

// Stochastic rounding too: its noise depends on the place, and moves magnitudes.
TEST(FormatContract, APersistentGradientOfEitherSignIsMirrored) {
  std::size_t turn = 0, mirroring = 0;
  for_each_case([&]<class Rule>(const Case<Rule>& c) {
    std::vector<RuleStep> rule = steps_of<Rule>(c.options, 200);
    if (!mirrors({}, rule, kNothing)) return;
    ++mirroring;
    // Every format of moments, with the formats of weights in turn.
    for (int s = 0; s < kFormatCount; ++s) {
      if (!kFormats[s].for_moments) continue;
      Storage storage = {Format::fp32, Format(s)};
      do {
        storage.weight = Format(turn++ % kFormatCount);
      } while (!info_of(storage.weight).for_weights);
      EXPECT_TRUE(mirrors(storage, rule, kNothing)) << c.name << ", " << storage;
    }
  });
  EXPECT_GE(mirroring, 30u) << "of rules that mirror in fp32";
}

TEST(FormatContract, APreferredSignIsSeen) {
  std::vector<RuleStep> rule = steps_of<rules::AdamW>({}, 20);
  Storage storage = {Format::bf16, Format::int8};
  EXPECT_TRUE(mirrors(storage, rule, kNothing));
  // As a code book without −1 has it.
  EXPECT_FALSE(mirrors(storage, rule, [](Weight& weight) {
    Matrix codes = weight.S[0].view().values;
    for (std::int64_t c = 0; c < codes.cols; ++c) {
      auto& code = static_cast<std::int8_t*>(codes.row(0))[c];
      if (code == -127) code = -126;
    }
  }));
  // As rounding towards +∞ has it.
  EXPECT_FALSE(mirrors(storage, rule, [](Weight& weight) {
    auto& code = *static_cast<std::int8_t*>(weight.S[0].view().values.row(1));
    code = static_cast<std::int8_t>(code < 127 ? code + 1 : code);
  }));
}

// ---- Bounds of theory: how far moments in 8 bits are from moments in fp32 ---------------------------------
//
// A step computes fresh moments from the stored ones in fp32 and stores them rounded up or down, less than a scale s
// off: m̂ of what is stored, m of what fp32 keeps with the same gradients.
//   First moment.  fresh = β₁ m̂ + (1 − β₁) g, so |m̂ − m| grows as  e ← β₁ e + s + r.  With s ≤ s_max so far,
//     e ≤ (s_max + r) / (1 − β₁).
//   Second moment, whose root is stored.  fresh = √(β₂ a² + (1 − β₂) g²) =: f(a), a the stored root.  f is the length
//   of the vector (√β₂ a, √(1 − β₂) g), so |f(a) − f(b)| ≤ √β₂ |a − b|:  e ← √β₂ e + s + r,  and
//     |√v̂ − √v| ≤ (s_max + r) / (1 − √β₂).
// r is what fp32 rounds, in both runs and in encoding: 2⁻²¹ of the largest number in the block so far. Rounded to
// nearest, s would be s / 2, and errors would not cancel: at β₂ = 0.999 they all go one way where v falls.

struct Betas {
  double beta1, beta2;
};

// Moment k in int8 with what the bound is made of, block by block.
struct Followed {
  double contraction;
  std::vector<double> largest_scale, largest;
  double worst = 0;  // |error| / bound

  void look(StoredBuffer& stored, StoredBuffer& exact) {
    Matrix scales = stored.view().rest;
    largest_scale.resize(static_cast<std::size_t>(scales.rows * scales.cols));
    largest.resize(largest_scale.size());
    for (std::int64_t r = 0; r < scales.rows; ++r) {
      std::vector<float> x = stored.row(r), y = exact.row(r);
      auto coded = [&](float z) { return exact.sign() == Sign::any ? z : std::sqrt(static_cast<double>(z)); };
      for (std::int64_t b = 0; b < scales.cols; ++b) {
        auto block = static_cast<std::size_t>(r * scales.cols + b);
        auto bits = std::uint32_t{static_cast<std::uint16_t*>(scales.row(r))[b]} << 16;
        double& s = largest_scale[block];
        s = std::max(s, static_cast<double>(std::bit_cast<float>(bits)));
        std::int64_t end = std::min((b + 1) * kBlockColumns, std::ssize(x));
        double error = 0;
        for (auto j = static_cast<std::size_t>(b * kBlockColumns); j < static_cast<std::size_t>(end); ++j) {
          largest[block] = std::max(largest[block], std::abs(coded(y[j])));
          error = std::max(error, std::abs(coded(x[j]) - coded(y[j])));
        }
        double bound = (s + 0x1p-21 * std::max(largest[block], 255 * s)) / (1 - contraction);
        worst = std::max(worst, error / bound);
      }
    }
  }
};

// The worst parts of their bounds that m̂ and √v̂ come to in 2000 steps of AdamW: columns of many magnitudes, which grow
// a hundredfold and shrink again.
template <class Spoil>
std::array<double, 2> worst_parts(Betas betas, Spoil&& spoil) {
  constexpr Shape kShape = {2, 75};
  Random random(103);
  std::vector<RuleStep> rule = steps_of<rules::AdamW>({.beta1 = betas.beta1, .beta2 = betas.beta2}, 2000);
  Weight in8 = fresh(kShape, {Format::fp32, Format::int8}, rule[0].rule(), random),
         in32 = fresh(kShape, {}, rule[0].rule(), random);
  std::vector<double> magnitude;
  for (std::int64_t i = 0; i < kShape.out * kShape.in; ++i) magnitude.push_back(std::pow(10, -4 * random.unit()));
  Followed followed[] = {{.contraction = betas.beta1, .largest_scale = {}, .largest = {}},
                         {.contraction = std::sqrt(betas.beta2), .largest_scale = {}, .largest = {}}};
  for (std::size_t t = 0; t < rule.size(); ++t) {
    double burst = t % 500 < 250 ? 1 : 0.01;
    Buffer G(kShape.out, kShape.in, DType::f32);
    std::size_t i = 0;
    G.fill([&] { return static_cast<float>(burst * magnitude[i++]) * random.uniform(-1, 1.5); });
    Term term = Dense{G.view()};
    for (Weight* weight : {&in8, &in32})
      step(*weight, kShape, std::span(&term, 1), rule[t], static_cast<std::int64_t>(t) + 1);
    spoil(in8);
    for (std::size_t k = 0; k < 2; ++k) followed[k].look(in8.S[k], in32.S[k]);
  }
  return {followed[0].worst, followed[1].worst};
}

TEST(FormatContract, MomentsIn8BitsStayWithinTheoryOfThoseInFp32) {
  for (Betas betas : {Betas{0.9, 0.999}, Betas{0.9, 0.95}, Betas{0.4, 0.9}, Betas{0.99, 0.99}}) {
    auto [m, v] = worst_parts(betas, kNothing);
    EXPECT_LE(m, 1) << betas.beta1;
    EXPECT_LE(v, 1) << betas.beta2;
    // It is approached where it is few scales.
    EXPECT_GT(m, 0.05) << betas.beta1;
    EXPECT_GT(v, betas.beta2 < 0.99 ? 0.05 : 0) << betas.beta2;
  }
}

TEST(FormatContract, CodesThatAreTwoOffLeaveTheory) {
  // Each step two codes nearer to 0.
  auto cut = [](int k) {
    return [k](Weight& weight) {
      Stored S = weight.S[static_cast<std::size_t>(k)].view();
      for (std::int64_t r = 0; r < S.values.rows; ++r)
        for (std::int64_t c = 0; c < S.values.cols; ++c) {
          auto* code = static_cast<std::int8_t*>(S.values.row(r)) + c;
          if (k == 0) *code = static_cast<std::int8_t>(*code - std::clamp<int>(*code, -2, 2));
          if (k == 1) *code = static_cast<std::int8_t>(std::max(static_cast<std::uint8_t>(*code) - 2, 0));
        }
    };
  };
  EXPECT_GT(worst_parts({0.9, 0.95}, cut(0))[0], 1);
  EXPECT_GT(worst_parts({0.9, 0.95}, cut(1))[1], 1);
  EXPECT_GT(worst_parts({0.4, 0.9}, cut(0))[0], 1);
  EXPECT_GT(worst_parts({0.4, 0.9}, cut(1))[1], 1);
}

// ---- Averages follow ---------------------------------------------------------------------------------------

// Gradients are ten times smaller from step 1,000 on: the mean of √(v̂ / v) 6,000 steps later, v what fp32 keeps.
double root_left_over(Format state) {
  constexpr Shape kShape = {2, 64};
  constexpr int kDrop = 1000, kSteps = 7000;
  Random random(105);
  std::vector<RuleStep> rule = steps_of<rules::AdamW>({}, kSteps);
  Weight stored = fresh(kShape, {Format::fp32, state}, rule[0].rule(), random),
         exact = fresh(kShape, {}, rule[0].rule(), random);
  for (int t = 0; t < kSteps; ++t) {
    Buffer G(kShape.out, kShape.in, DType::f32);
    G.fill([&] { return random.uniform(-1, 1) * (t < kDrop ? 1.f : 0.1f); });
    Term term = Dense{G.view()};
    for (Weight* weight : {&stored, &exact})
      step(*weight, kShape, std::span(&term, 1), rule[static_cast<std::size_t>(t)], t + 1);
  }
  std::vector<float> a = stored.S[1].numbers(), b = exact.S[1].numbers();
  double sum = 0;
  for (std::size_t j = 0; j < a.size(); ++j) sum += std::sqrt(double{a[j]} / b[j]);
  return sum / static_cast<double>(a.size());
}

TEST(FormatContract, ASecondMomentComesDownAgain) {
  for (Format format : {Format::int8, Format::fp8, Format::bf16_stochastic})
    EXPECT_NEAR(root_left_over(format), 1, 0.15) << name_of(format);
  EXPECT_GT(root_left_over(Format::bf16), 3) << "to nearest it stays where it was, as in torch";
}

// Column magnitudes over three decades: what is small beside its block's largest still has a denominator.
TEST(FormatContract, SmallGradientsBesideLargeOnesMoveAWeightBySomeLr) {
  constexpr Shape kShape = {4, 64};
  constexpr double kLr = 1e-3;
  Random random(106);
  std::vector<double> magnitude;
  for (std::int64_t c = 0; c < kShape.in; ++c) magnitude.push_back(std::pow(10, -3 * random.unit()));
  std::vector<RuleStep> rule = steps_of<rules::AdamW>({.lr = kLr, .weight_decay = 0}, 300);
  for (Format format : {Format::fp32, Format::int8, Format::fp8}) {
    Weight weight = fresh(kShape, {Format::fp32, format}, rule[0].rule(), random);
    double largest = 0;
    for (std::size_t t = 0; t < rule.size(); ++t) {
      Buffer G(kShape.out, kShape.in, DType::f32);
      for (std::int64_t r = 0; r < kShape.out; ++r)
        for (std::int64_t c = 0; c < kShape.in; ++c)
          G.set(r, c,
                random.below(10) == 0
                    ? 0.f
                    : static_cast<float>(magnitude[static_cast<std::size_t>(c)]) * random.uniform(-1, 1));
      Term term = Dense{G.view()};
      std::vector<float> before = weight.W.numbers();
      step(weight, kShape, std::span(&term, 1), rule[t], static_cast<std::int64_t>(t) + 1);
      std::vector<float> after = weight.W.numbers();
      for (std::size_t j = 0; j < before.size(); ++j)
        largest = std::max(largest, std::abs(double{after[j]} - before[j]));
    }
    EXPECT_LT(largest, 12 * kLr) << name_of(format);
  }
}

// ---- Stochastic rounding of a weight ----------------------------------------------------------------------

struct Spread {
  double mean, variance;  // of the change of W, in last places
};

// n steps of a constant update of `part` of a last place, on numbers in the middle of a binade.
Spread spread_after(int n, double part, Format format, bool new_noise = true) {
  constexpr Shape kShape = {128, 512};
  constexpr double kLastPlace = 0x1p-7;
  Weight weight(kShape, {format}, kRuleInfo<rules::Sgd>, [] { return 1.5f; });
  Buffer ones = Buffer(1, kShape.out, DType::f32).fill([] { return 1.f; }),
         same = Buffer(1, kShape.in, DType::f32).fill([&] { return static_cast<float>(-part * kLastPlace); });
  Term term = Outer{ones.view(), same.view()};
  for (int t = 1; t <= n; ++t)
    step(weight, kShape, std::span(&term, 1), step_of<rules::Sgd>({.lr = 1}, 1), new_noise ? t : 1);
  Spread s = {0, 0};
  std::vector<float> w = weight.W.numbers();
  for (float x : w) s.mean += (x - 1.5) / kLastPlace / static_cast<double>(w.size());
  for (float x : w) {
    double off = (x - 1.5) / kLastPlace - s.mean;
    s.variance += off * off / static_cast<double>(w.size());
  }
  return s;
}

constexpr double kElements = 128 * 512;

// After n steps W has moved by n · part on average, with the variance of n coins, each at most a quarter.
::testing::AssertionResult is_unbiased(int n, double part, const Spread& s) {
  double variance = n * part * (1 - part);
  if (std::abs(s.mean - n * part) <= 5 * std::sqrt(variance / kElements) &&
      std::abs(s.variance - variance) <=
          5 * variance * std::sqrt(2 / kElements) + 5 * std::sqrt(variance / kElements) &&
      s.variance <= n * 0.25 * (1 + 5 * std::sqrt(2 / kElements)))
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "mean " << s.mean << ", variance " << s.variance << "; expected " << n * part
                                       << ", " << variance;
}

TEST(FormatContract, StochasticRoundingLosesNoUpdateAndAddsAtMostAQuarter) {
  for (double part : {1.0 / 64, 0.25, 0.5})
    for (int n : {1, 8, 64}) EXPECT_TRUE(is_unbiased(n, part, spread_after(n, part, Format::bf16_stochastic)));
}

TEST(FormatContract, RoundingThatIsNotStochasticIsSeen) {
  EXPECT_FALSE(is_unbiased(64, 1.0 / 64, spread_after(64, 1.0 / 64, Format::bf16))) << "every update is lost";
  EXPECT_EQ(spread_after(64, 1.0 / 64, Format::bf16).mean, 0);
  EXPECT_FALSE(is_unbiased(64, 1.0 / 64, spread_after(64, 1.0 / 64, Format::bf16_stochastic, false)))
      << "the same noise in every step";
}

// ---- Memory ----------------------------------------------------------------------------------------------

double bytes_of(const Matrix& m) {
  return m.data ? static_cast<double>(m.rows * m.cols) * static_cast<double>(size_of(m.dtype)) : 0;
}

// Of what a kernel accepts as a (4096, 4096) matrix in the format.
double bytes_each(Format format, Sign sign = Sign::any) {
  constexpr std::int64_t kN = 4096;
  static std::byte somewhere;
  const FormatInfo& info = info_of(format);
  auto part = [](DType dtype, std::int64_t cols) { return Matrix{&somewhere, dtype, kN, cols, cols}; };
  Stored stored = {format, part(sign == Sign::any ? info.values : info.not_negative_values, kN),
                   info.has_rest ? part(info.rest, ceil_div(kN, info.columns_of_rest)) : Matrix{}};
  check_stored("test", "stored", stored, kN, kN, sign);
  return (bytes_of(stored.values) + bytes_of(stored.rest)) / (kN * kN);
}

TEST(FormatContract, AdamWTakesTheBytesAParameterThatAreSaid) {
  auto bytes = [](Format weight, Format state) {
    double sum = bytes_each(weight);
    for (const Moment& moment : rules::AdamW::kMoments) sum += bytes_each(state, moment.sign);
    return sum;
  };
  EXPECT_EQ(bytes(Format::fp32, Format::fp32), 12);
  EXPECT_EQ(bytes(Format::bf16, Format::bf16), 6);
  EXPECT_EQ(bytes(Format::bf16_plus16, Format::int8), 6.125);
  EXPECT_EQ(bytes(Format::bf16_plus8, Format::int8), 5.125);
  EXPECT_EQ(bytes(Format::bf16_stochastic, Format::int8), 4.125);
  EXPECT_EQ(bytes(Format::bf16_stochastic, Format::fp8), 4.125);
}

}  // namespace
}  // namespace forge
