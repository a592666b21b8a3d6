#include "forge/rules/sgd.h"

#include <gtest/gtest.h>

#include <vector>

#include "forge/base/scalar.h"
#include "forge/base/testing/refusal.h"

namespace forge::rules {
namespace {

TEST(Sgd, RefusesOptionsThatDoNotGoTogether) {
  struct Refusal {
    SgdOptions options;
    const char* word;
  };
  for (const Refusal& r :
       std::vector<Refusal>{{{.nesterov = true}, "nesterov needs momentum above 0"},
                            {{.momentum = 0.9, .dampening = 0.5, .nesterov = true}, "dampening 0.5"}}) {
    EXPECT_TRUE(testing::refuses([&] { Sgd::prepare(r.options); }, {"SGD", r.word}));
    EXPECT_TRUE(testing::refuses([&] { SgdMomentum::prepare(r.options, 1); }, {"SGD", r.word}));
  }
  EXPECT_TRUE(testing::refuses([] { Sgd::prepare({.momentum = 0.9}); }, {"momentum is 0.9", "sgd_momentum"}));
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

}  // namespace
}  // namespace forge::rules
