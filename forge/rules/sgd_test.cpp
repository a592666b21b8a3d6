#include "forge/rules/sgd.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "forge/base/testing/closeness.h"
#include "forge/base/testing/refusal.h"

namespace forge::rules {
namespace {

using testing::Step64;

constexpr double kUnits = 4;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Case {
  const char* name;
  SgdOptions options;
};

const std::vector<Case> kPlain = {
    {"defaults", {}}, {"decay", {.lr = 0.1, .weight_decay = 0.3}}, {"maximize", {.weight_decay = 1, .maximize = true}}};

const std::vector<Case> kMomentum = {
    {"momentum", {.momentum = 0.9}},
    {"dampening", {.lr = 0.1, .momentum = 0.9, .dampening = 0.4}},
    {"all of it dampened", {.momentum = 0.5, .dampening = 1}},
    {"decay", {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.3}},
    {"nesterov", {.lr = 0.1, .momentum = 0.95, .weight_decay = 0.01, .nesterov = true}},
    {"maximize", {.momentum = 0.9, .dampening = 0.1, .weight_decay = 0.1, .maximize = true}},
    {"no momentum", {.momentum = 0}},
};

// torch.optim.SGD as a formula; the buffer of the first step is the gradient, undamped.
Step64 reference(const SgdOptions& o, double w, double g, const double* old, std::int64_t step) {
  if (o.maximize) g = -g;
  double decay = o.weight_decay * w;
  double d = g + decay, largest = std::max(std::abs(g), std::abs(decay));
  double buffer = step == 1 ? d : o.momentum * old[0] + (1 - o.dampening) * d;
  double kept = step == 1 ? 0 : o.momentum * std::abs(old[0]);
  double largest_in_buffer = std::max(kept, largest);
  double change = o.nesterov ? d + o.momentum * buffer : buffer;
  return {.change = -o.lr * change,
          .largest_term = o.lr * largest_in_buffer,
          .moment = {buffer, 0},
          .largest_moment_term = {largest_in_buffer, 0}};
}

template <class Rule, class Prepare>
double distance(const SgdOptions& o, const Prepare& prepare) {
  constexpr double kSmallestWeight = -6;
  return testing::worst_units<Rule>(
      kSmallestWeight, prepare,
      [&](double w, double g, const double* old, std::int64_t step) { return reference(o, w, g, old, step); });
}

template <class Rule>
double distance(const SgdOptions& o) {
  return distance<Rule>(o, [&](std::int64_t step) { return Rule::prepare(o, step); });
}

TEST(Sgd, RefusesOptionsOutOfRange) {
  struct Refusal {
    SgdOptions options;
    const char* word;
  };
  for (const Refusal& r :
       std::vector<Refusal>{{{.lr = -0.5}, "lr is -0.5"},
                            {{.lr = kNaN}, "lr is nan"},
                            {{.momentum = -0.1}, "momentum is -0.1"},
                            {{.weight_decay = -1}, "weight_decay is -1"},
                            {{.weight_decay = kNaN}, "weight_decay is nan"},
                            {{.nesterov = true}, "nesterov needs momentum above 0"},
                            {{.momentum = 0.9, .dampening = 0.5, .nesterov = true}, "dampening 0.5"}}) {
    EXPECT_TRUE(testing::refuses([&] { Sgd::prepare(r.options); }, {"SGD", r.word}));
    EXPECT_TRUE(testing::refuses([&] { SgdMomentum::prepare(r.options, 1); }, {"SGD", r.word}));
  }
  EXPECT_TRUE(testing::refuses([] { Sgd::prepare({.momentum = 0.9}); }, {"momentum is 0.9", "sgd_momentum"}));
  EXPECT_TRUE(testing::refuses([] { SgdMomentum::prepare({.momentum = 0.9}, 0); }, {"step is 0"}));
}

TEST(Sgd, OneStepByHand) {
  Scalar w(4.f);
  Sgd::update(w, Scalar(3.f), static_cast<Scalar*>(nullptr), Sgd::prepare({.lr = 0.5, .weight_decay = 0.25}));
  EXPECT_EQ(w.x, 2.f) << "4 − ½ (3 + ¼·4)";
  Sgd::update(w, Scalar(3.f), static_cast<Scalar*>(nullptr), Sgd::prepare({.lr = 0.5, .maximize = true}));
  EXPECT_EQ(w.x, 3.5f) << "2 + ½·3";
}

TEST(SgdMomentum, TwoStepsByHand) {
  struct Row {
    SgdOptions options;
    float w1, b1, w2, b2;
  };
  // w = 0, g = 8 and 4, lr = ½, momentum ½.
  for (const Row& r : std::vector<Row>{{{.lr = 0.5, .momentum = 0.5}, -4, 8, -8, 8},
                                       {{.lr = 0.5, .momentum = 0.5, .dampening = 0.5}, -4, 8, -7, 6},
                                       {{.lr = 0.5, .momentum = 0.5, .nesterov = true}, -6, 8, -10, 8},
                                       {{.lr = 0.5, .momentum = 0.5, .weight_decay = 1}, -4, 8, -6, 4},
                                       {{.lr = 0.5, .momentum = 0.5, .maximize = true}, 4, -8, 8, -8}}) {
    Scalar w(0.f), b(77.f);  // what the buffer holds before the first step does not count
    SgdMomentum::update(w, Scalar(8.f), &b, SgdMomentum::prepare(r.options, 1));
    EXPECT_EQ(w.x, r.w1);
    EXPECT_EQ(b.x, r.b1);
    SgdMomentum::update(w, Scalar(4.f), &b, SgdMomentum::prepare(r.options, 2));
    EXPECT_EQ(w.x, r.w2);
    EXPECT_EQ(b.x, r.b2);
  }
}

TEST(SgdMomentum, DecaysItsMomentOnAZeroGradient) {
  Scalar w(1.f), b(2.f);
  SgdMomentum::update(w, Scalar(0.f), &b, SgdMomentum::prepare({.lr = 0.25, .momentum = 0.5}, 2));
  EXPECT_EQ(b.x, 1.f);
  EXPECT_EQ(w.x, 0.75f);
}

TEST(Sgd, IsCloseToFloat64) {
  for (const Case& c : kPlain) {
    double d = distance<Sgd>(c.options, [&](std::int64_t) { return Sgd::prepare(c.options); });
    EXPECT_LE(d, kUnits) << c.name;
  }
  for (const Case& c : kMomentum) EXPECT_LE(distance<SgdMomentum>(c.options), kUnits) << c.name;
}

// ---- Mutations: the comparison above has the power to see each ------------------------------------------

struct DampenedFirstStep : SgdMomentum {
  static Step prepare(const SgdOptions& o, std::int64_t step) {
    Step s = SgdMomentum::prepare(o, step);
    s.add = static_cast<float>(1 - o.dampening);
    return s;
  }
};

struct DampeningIgnored : SgdMomentum {
  static Step prepare(SgdOptions o, std::int64_t step) {
    o.dampening = 0;
    return SgdMomentum::prepare(o, step);
  }
};

struct NesterovIgnored : SgdMomentum {
  static Step prepare(SgdOptions o, std::int64_t step) {
    o.nesterov = false;
    return SgdMomentum::prepare(o, step);
  }
};

struct StepOffByOne : SgdMomentum {
  static Step prepare(const SgdOptions& o, std::int64_t step) {
    return SgdMomentum::prepare(o, std::max<std::int64_t>(step - 1, 1));
  }
};

struct MaximizeIgnored : SgdMomentum {
  static Step prepare(SgdOptions o, std::int64_t step) {
    o.maximize = false;
    return SgdMomentum::prepare(o, step);
  }
};

struct NesterovWithoutMomentum : SgdMomentum {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    Step one = s;
    one.momentum = 1;
    SgdMomentum::update(w, g, moment, one);
  }
};

struct NesterovOfTheOldMoment : SgdMomentum {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    V old = moment[0], old_w = w;
    SgdMomentum::update(w, g, moment, s);
    if (s.nesterov) w = old_w + V(s.minus_lr) * (g + V(s.weight_decay) * old_w + V(s.momentum) * old);
  }
};

struct DecoupledDecay : SgdMomentum {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    Step none = s;
    none.weight_decay = 0;
    w = w + V(s.minus_lr) * V(s.weight_decay) * w;
    SgdMomentum::update(w, g, moment, none);
  }
};

struct MaximizedDecay : SgdMomentum {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    Step flipped = s;
    if (s.maximize) flipped.weight_decay = -s.weight_decay;
    SgdMomentum::update(w, g, moment, flipped);
  }
};

template <class Rule>
bool caught() {
  for (const Case& c : kMomentum)
    if (!(distance<Rule>(c.options) <= kUnits)) return true;
  return false;
}

TEST(SgdMomentum, MutationsAreCaught) {
  EXPECT_TRUE(caught<DampenedFirstStep>());
  EXPECT_TRUE(caught<DampeningIgnored>());
  EXPECT_TRUE(caught<NesterovIgnored>());
  EXPECT_TRUE(caught<StepOffByOne>());
  EXPECT_TRUE(caught<MaximizeIgnored>());
  EXPECT_TRUE(caught<NesterovWithoutMomentum>());
  EXPECT_TRUE(caught<NesterovOfTheOldMoment>());
  EXPECT_TRUE(caught<DecoupledDecay>());
  EXPECT_TRUE(caught<MaximizedDecay>());
  EXPECT_FALSE(caught<SgdMomentum>());
}

}  // namespace
}  // namespace forge::rules
