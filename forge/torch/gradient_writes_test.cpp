// A gradient that is written to: exposed, zeroed, added to another, cloned, spent.
#include <ATen/ATen.h>

#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "forge/torch/gradient.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::random;
using testing::same_bits;
using testing::throws;

at::Tensor weight(at::ScalarType dtype = at::kFloat) { return at::zeros({6, 4}, dtype); }

// dYᵀX + rows, scaled.
void fill(Gradient& G, std::uint64_t seed = 1) {
  G.set_policy(Collapse::never, false);
  G.add_outer(random({2, 6}, seed), random({2, 4}, seed + 1));
  G.mul_(0.3);
  G.add_rows(at::tensor({5, 0, 5}, at::kLong), random({3, 4}, seed + 2));
}

TEST(GradientWrites, WhatIsWrittenToTheExposedTensorIsTheGradient) {
  for (auto dtype : {at::kFloat, at::kBFloat16}) {
    Gradient G(weight(dtype));
    fill(G);
    at::Tensor before = G.materialize(dtype), D = G.expose();
    EXPECT_EQ(D.scalar_type(), dtype);
    EXPECT_TRUE(same_bits(D, before));
    D.select(0, 2).fill_(7);
    EXPECT_EQ(G.materialize()[2][1].item<float>(), 7);
    EXPECT_EQ(G.scale().read(), 1);
    EXPECT_EQ(G.expose().data_ptr(), D.data_ptr()) << "asked again, it is the same tensor";
  }
}

TEST(GradientWrites, ViewsOfAnExposedGradientSeeWhatArrivesLater) {
  for (auto dtype : {at::kFloat, at::kBFloat16}) {
    Gradient G(weight(dtype));
    fill(G);
    at::Tensor row = G.expose()[1], before = row.clone();
    G.mul_(0.5);
    EXPECT_TRUE(same_bits(row, before * 0.5));
    at::Tensor dY = random({3, 6}, 8, dtype), X = random({3, 4}, 9, dtype);
    at::Tensor expected = (G.materialize().to(at::kDouble) + dY.t().to(at::kDouble).mm(X.to(at::kDouble)))[1];
    G.add_outer(dY, X);
    double eps = dtype == at::kFloat ? 1e-6 : 0x1p-7;
    EXPECT_TRUE(at::allclose(row.to(at::kDouble), expected, eps, eps));
    EXPECT_EQ(G.size(), 1U);
  }
}

TEST(GradientWrites, ZeroIsAGradient) {
  Gradient G(weight());
  fill(G);
  G.zero_();
  EXPECT_FALSE(G.empty());
  EXPECT_EQ(G.scale().read(), 1);
  EXPECT_EQ(G.materialize().abs().max().item<float>(), 0);
  EXPECT_EQ(G.held_bytes(), 0);
  EXPECT_EQ(G.sum_squares(false).item<double>(), 0);
  EXPECT_TRUE(G.finite().item<bool>());
  G.add_dense(at::ones({6, 4}));
  EXPECT_EQ(G.materialize().sum().item<float>(), 24);
}

TEST(GradientWrites, SumsOfGradientsAreTheSumsOfTheirTerms) {
  Gradient G(weight()), H(weight());
  fill(G, 1);
  fill(H, 10);
  at::Tensor g = G.materialize(at::kFloat).to(at::kDouble), h = H.materialize().to(at::kDouble);
  G.add_(H, -2);
  EXPECT_EQ(G.size(), 4U);
  EXPECT_EQ(G.collapses() + H.collapses(), 0);
  EXPECT_TRUE(at::allclose(G.materialize().to(at::kDouble), g - 2 * h, 1e-5, 1e-6));
  G.add_(G);
  EXPECT_TRUE(at::allclose(G.materialize().to(at::kDouble), 2 * (g - 2 * h), 1e-5, 1e-6));
  Gradient other(at::zeros({4, 6}));
  EXPECT_THAT([&] { G.add_(other); }, throws("shape"));
}

TEST(GradientWrites, ASumDoesNotFollowWhatIsWrittenToTheSummand) {
  Gradient G(weight()), H(weight());
  fill(H);
  H.expose();
  G.add_(H);
  auto copy = H.clone();
  at::Tensor before = H.materialize();
  H.expose().zero_();
  EXPECT_TRUE(same_bits(G.materialize(), before));
  EXPECT_TRUE(same_bits(copy->materialize(), before));
}

TEST(GradientWrites, ACloneGoesItsOwnWay) {
  Gradient G(weight());
  fill(G);
  at::Tensor before = G.materialize();
  auto copy = G.clone();
  EXPECT_TRUE(at::allclose(copy->materialize(), before, 1e-6, 1e-7));
  EXPECT_EQ(copy->collapses(), 0);
  copy->mul_(3);
  copy->expose().add_(1);
  EXPECT_TRUE(same_bits(G.materialize(), before));
}

TEST(GradientWrites, ASpentGradientSaysWhereItWent) {
  Gradient G(weight());
  fill(G);
  G.spend();
  for (auto use : std::vector<std::function<void()>>{[&] { G.expression(); }, [&] { G.expose(); }, [&] { G.mul_(2); },
                                                     [&] { G.sum_squares(false); }, [&] { G.clone(); },
                                                     [&] {
                                                       G.add_dense(at::ones({6, 4}));
                                                     }})
    EXPECT_THAT(use, throws("applied inside backward"));
  G.clear();
  fill(G);
  EXPECT_NO_THROW(G.materialize());
}

TEST(GradientWrites, FinitenessIsTheChainsNotTheBounds) {
  // The factors' norms overflow together; the elements do not. And a factor that is not finite is found.
  Gradient G(weight());
  at::Tensor dY = at::zeros({1, 6}), X = at::zeros({1, 4});
  dY[0][0] = 1e30f;
  X[0][0] = 1e8f;
  dY[0][1] = dY[0][2] = 2e30f;
  G.add_outer(dY, X);
  EXPECT_TRUE(G.finite().item<bool>());
  G.mul_(std::numeric_limits<double>::infinity());
  EXPECT_FALSE(G.finite().item<bool>());
  Gradient H(weight());
  X[0][3] = std::numeric_limits<float>::quiet_NaN();
  H.add_outer(dY, X);
  EXPECT_FALSE(H.finite().item<bool>());
}

TEST(GradientWrites, TheLedgerKnowsThePeakOfAllTogether) {
  auto ledger = std::make_shared<Ledger>();
  {
    Gradient G(weight(), ledger);
    G.set_policy(Collapse::never, false);
    G.add_outer(random({2, 6}, 1), random({2, 4}, 2));
    EXPECT_EQ(ledger->figures().gradients.now(), 80);
    G.expose("a test");
    EXPECT_EQ(ledger->figures().gradients.now(), 96);
    EXPECT_EQ(ledger->collapses["a test"], 1);
  }
  EXPECT_EQ(ledger->figures().gradients.now(), 0);
  EXPECT_EQ(ledger->figures().gradients.peak(), 96);
}

}  // namespace
}  // namespace forge
