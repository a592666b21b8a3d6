#include "forge/rules/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "forge/base/testing/closeness.h"
#include "forge/base/testing/refusal.h"

namespace forge::rules {
namespace {

using testing::Step64;

// Contract 8: the spread of PyTorch's own four implementations, for weights that are larger than a step.
constexpr double kUnits = 4, kLargeWeight = -2;
// Where the weight is far smaller than the step, its ulp counts for nothing. Measured over 8 million steps: 5.7, and
// 6.9 for the arithmetic of torch.optim.AdamW. Mutations are sought here, where nothing hides behind ulp(W).
constexpr double kUnitsOfTinyWeights = 6, kTinyWeight = -6;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Case {
  const char* name;
  AdamWOptions options;
};

const std::vector<Case> kCases = {
    {"defaults", {}},
    {"no decay", {.weight_decay = 0}},
    {"strong decay", {.lr = 1e-2, .weight_decay = 0.3}},
    {"large eps", {.eps = 1e-3}},
    {"maximize", {.weight_decay = 0.1, .maximize = true}},
    {"beta1 below one half", {.beta1 = 0.3, .beta2 = 0.95}},
    {"beta1 one half", {.beta1 = 0.5, .beta2 = 0.9}},
    {"no moments", {.beta1 = 0, .beta2 = 0}},
    {"fine-tuning", {.lr = 2e-5, .beta2 = 0.95}},
};

// torch.optim.AdamW as a formula.
Step64 reference(const AdamWOptions& o, double w, double g, const double* old, std::int64_t step) {
  double t = static_cast<double>(step);
  if (o.maximize) g = -g;
  double m = o.beta1 * old[0] + (1 - o.beta1) * g;
  double v = o.beta2 * old[1] + (1 - o.beta2) * g * g;
  double denominator = std::sqrt(v) / std::sqrt(1 - std::pow(o.beta2, t)) + o.eps;
  double scale = o.lr / (1 - std::pow(o.beta1, t)) / denominator;
  double decay = o.lr * o.weight_decay * w;
  double kept = o.beta1 * old[0], added = (1 - o.beta1) * g;
  auto largest = [](double a, double b) { return std::max(std::abs(a), std::abs(b)); };
  return {.change = -decay - scale * m,
          .largest_term = largest(decay, scale * largest(kept, added)),
          .moment = {m, v},
          .largest_moment_term = {largest(kept, added), largest(o.beta2 * old[1], (1 - o.beta2) * g * g)}};
}

// The worst unit of a rule that follows the options, or claims to.
template <class Rule>
double distance(const AdamWOptions& o, double low) {
  return testing::worst_units<Rule>(
      low, [&](std::int64_t step) { return Rule::prepare(o, step); },
      [&](double w, double g, const double* old, std::int64_t step) { return reference(o, w, g, old, step); });
}

TEST(AdamW, RefusesOptionsOutOfRange) {
  struct Refusal {
    AdamWOptions options;
    std::int64_t step;
    const char* word;
  };
  for (const Refusal& r : std::vector<Refusal>{{{.lr = -1}, 1, "lr is -1"},
                                               {{.lr = kNaN}, 1, "lr is nan"},
                                               {{.beta1 = 1}, 1, "beta1 is 1"},
                                               {{.beta1 = -0.1}, 1, "beta1 is -0.1"},
                                               {{.beta2 = 1.5}, 1, "beta2 is 1.5"},
                                               {{.beta2 = kNaN}, 1, "beta2 is nan"},
                                               {{.eps = -1e-8}, 1, "eps is -1e-08"},
                                               {{.weight_decay = -2}, 1, "weight_decay is -2"},
                                               {{}, 0, "step is 0"},
                                               {{}, -3, "step is -3"}})
    EXPECT_TRUE(testing::refuses([&] { AdamW::prepare(r.options, r.step); }, {"AdamW", r.word}));
}

TEST(AdamW, FirstStepMovesByLr) {
  for (float g : {1e-3f, 1.f, -50.f}) {
    Scalar w(0.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
    AdamW::update(w, Scalar(g), moments, AdamW::prepare({.lr = 0.25, .eps = 0}, 1));
    EXPECT_NEAR(w.x, g > 0 ? -0.25 : 0.25, 0x1p-23) << "g = " << g;
  }
}

TEST(AdamW, TwoStepsByHand) {
  // beta1 = beta2 = 1/2, lr = 1, eps = 0, no decay, g = 2 then −2:
  //   m = 1, v = 2, c = 1/2:   w = 0 − 2·1/√4            = −1
  //   m = −1/2, v = 3, c = 3/4: w = −1 + (4/3)·(1/2)/√4  = −1 + 1/3
  AdamWOptions o = {.lr = 1, .beta1 = 0.5, .beta2 = 0.5, .eps = 0, .weight_decay = 0};
  Scalar w(0.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
  AdamW::update(w, Scalar(2.f), moments, AdamW::prepare(o, 1));
  EXPECT_EQ(moments[0].x, 1.f);
  EXPECT_EQ(moments[1].x, 2.f);
  EXPECT_NEAR(w.x, -1, 0x1p-22);
  AdamW::update(w, Scalar(-2.f), moments, AdamW::prepare(o, 2));
  EXPECT_EQ(moments[0].x, -0.5f);
  EXPECT_EQ(moments[1].x, 3.f);
  EXPECT_NEAR(w.x, -2.0 / 3, 0x1p-22);
}

TEST(AdamW, DecaysOnAZeroGradient) {
  Scalar w(8.f), moments[2] = {Scalar(0.f), Scalar(0.f)};
  AdamW::update(w, Scalar(0.f), moments, AdamW::prepare({.lr = 0.5, .weight_decay = 0.5}, 1));
  EXPECT_EQ(w.x, 6.f);
  EXPECT_EQ(moments[0].x, 0.f);
  EXPECT_EQ(moments[1].x, 0.f);
}

TEST(AdamW, MaximizeIsTheNegatedGradient) {
  testing::Random random(3);
  for (int i = 0; i < 1000; ++i) {
    float g = random.wild(), w = random.wild(), m = random.log_uniform(-4, 2), v = std::abs(random.log_uniform(-4, 2));
    Scalar a(w), b(w), ma[2] = {Scalar(m), Scalar(v)}, mb[2] = {Scalar(m), Scalar(v)};
    AdamW::update(a, Scalar(g), ma, AdamW::prepare({.maximize = true}, 3));
    AdamW::update(b, Scalar(-g), mb, AdamW::prepare({}, 3));
    ASSERT_TRUE(testing::same_number(a.x, b.x));
    ASSERT_TRUE(testing::same_number(ma[0].x, mb[0].x));
  }
}

TEST(AdamW, SmallBeta1StartsFromTheGradientAsTorchLerpDoes) {
  // Where β₁ ≤ 1/2 the nearer end is g: a tiny moment beside a large g leaves (1 − β₁) g, one rounding away.
  for (double beta1 : {0.0, 0.25, 0.5}) {
    Scalar w(1.f), moments[2] = {Scalar(0x1p-40f), Scalar(0.f)};
    AdamW::update(w, Scalar(3.f), moments, AdamW::prepare({.beta1 = beta1}, 2));
    EXPECT_EQ(moments[0].x, static_cast<float>((1 - beta1) * 3));
  }
  EXPECT_TRUE(AdamW::prepare({.beta1 = 0.5}, 1).from_g);
  EXPECT_FALSE(AdamW::prepare({.beta1 = 0.51}, 1).from_g);
}

TEST(AdamW, IsCloseToFloat64) {
  for (const Case& c : kCases) {
    EXPECT_LE(distance<AdamW>(c.options, kLargeWeight), kUnits) << c.name;
    EXPECT_LE(distance<AdamW>(c.options, kTinyWeight), kUnitsOfTinyWeights) << c.name;
  }
}

// ---- Mutations: the comparison above has the power to see each ------------------------------------------

struct NoBiasCorrection : AdamW {
  static Step prepare(const AdamWOptions& o, std::int64_t step) {
    Step s = AdamW::prepare(o, step);
    s.step_size = static_cast<float>(o.lr);
    s.inverse_sqrt_c2 = 1;
    return s;
  }
};

struct BetasSwapped : AdamW {
  static Step prepare(AdamWOptions o, std::int64_t step) {
    std::swap(o.beta1, o.beta2);
    return AdamW::prepare(o, step);
  }
};

struct StepOffByOne : AdamW {
  static Step prepare(const AdamWOptions& o, std::int64_t step) { return AdamW::prepare(o, step + 1); }
};

struct MaximizeIgnored : AdamW {
  static Step prepare(AdamWOptions o, std::int64_t step) {
    o.maximize = false;
    return AdamW::prepare(o, step);
  }
};

// The rule with the places where a mistake is made left open.
template <class Mistake>
struct Mutated : AdamW {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    V &m = moment[0], &v = moment[1];
    V decay(s.decay), step_size(s.step_size), inverse(s.inverse_sqrt_c2), eps(s.eps);
    if (s.maximize) g = -g;
    V old_m = m, old_v = v;
    m = fma(V(s.lerp), g - m, s.from_g ? g : m);
    v = fma(V(s.one_minus_beta2) * g, g, V(s.beta2) * v);
    w = Mistake::weight(w, m, v, old_m, old_v, decay, step_size, inverse, eps);
  }
};

#define FORGE_MISTAKE(Name, formula)                                                                     \
  struct Name {                                                                                          \
    template <class V>                                                                                   \
    static V weight(V w, [[maybe_unused]] V m, [[maybe_unused]] V v, [[maybe_unused]] V old_m,           \
                    [[maybe_unused]] V old_v, [[maybe_unused]] V decay, V step_size, V inverse, V eps) { \
      return formula;                                                                                    \
    }                                                                                                    \
  }

FORGE_MISTAKE(None, decay* w - step_size * m / (sqrt(v) * inverse + eps));
FORGE_MISTAKE(EpsInsideSqrt, decay* w - step_size * m / sqrt(v * inverse * inverse + eps));
FORGE_MISTAKE(EpsBeforeCorrection, decay* w - step_size * m / ((sqrt(v) + eps) * inverse));
FORGE_MISTAKE(DecayAfter, decay*(w - step_size * m / (sqrt(v) * inverse + eps)));
FORGE_MISTAKE(NoDecay, w - step_size * m / (sqrt(v) * inverse + eps));
FORGE_MISTAKE(OldFirstMoment, decay* w - step_size * old_m / (sqrt(v) * inverse + eps));
FORGE_MISTAKE(OldSecondMoment, decay* w - step_size * m / (sqrt(old_v) * inverse + eps));
FORGE_MISTAKE(WrongSign, decay* w + step_size * m / (sqrt(v) * inverse + eps));
#undef FORGE_MISTAKE

template <class Rule>
double worst_of_all_cases() {
  double worst = 0;
  for (const Case& c : kCases) {
    double d = distance<Rule>(c.options, kTinyWeight);
    worst = std::isnan(d) ? d : std::max(worst, d);
  }
  return worst;
}

TEST(AdamW, MutationsAreCaught) {
  EXPECT_LE(worst_of_all_cases<Mutated<None>>(), kUnitsOfTinyWeights) << "the unmutated form passes";
  auto caught = []<class... Rule>() {
    return std::vector<bool>{!(worst_of_all_cases<Rule>() <= kUnitsOfTinyWeights)...};
  };
  EXPECT_EQ((caught.operator()<NoBiasCorrection, BetasSwapped, StepOffByOne, MaximizeIgnored>()),
            std::vector<bool>(4, true));
  EXPECT_EQ(
      (caught.operator()<Mutated<EpsInsideSqrt>, Mutated<EpsBeforeCorrection>, Mutated<DecayAfter>, Mutated<NoDecay>,
                         Mutated<OldFirstMoment>, Mutated<OldSecondMoment>, Mutated<WrongSign>>()),
      std::vector<bool>(7, true));
}

}  // namespace
}  // namespace forge::rules
