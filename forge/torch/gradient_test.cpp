#include "forge/torch/gradient.h"

#include <ATen/ATen.h>

#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::random;
using testing::same_bits;
using testing::sum_bound;
using testing::throws;
using testing::within;
using testing::zero_weight;

TEST(Gradient, RefusesWhatDoesNotFit) {
  Gradient G(zero_weight(4, 8));
  EXPECT_THAT([&] { G.add_outer(at::zeros({3, 5}), at::zeros({3, 8})); }, throws("dY is [3, 5], expected (T, 4)"));
  EXPECT_THAT([&] { G.add_outer(at::zeros({3, 4}), at::zeros({3, 7})); }, throws("X is [3, 7], expected (T, 8)"));
  EXPECT_THAT([&] { G.add_outer(at::zeros({3, 4}), at::zeros({2, 8})); }, throws("as many rows"));
  EXPECT_THAT([&] { G.add_outer(at::zeros({3, 4}, at::kDouble), at::zeros({3, 8})); }, throws("dY is Double"));
  EXPECT_THAT([&] { G.add_outer(at::zeros({3, 4}, at::kMeta), at::zeros({3, 8})); }, throws("dY is on meta"));
  EXPECT_THAT([&] { G.add_dense(at::zeros({8, 4})); }, throws("D is [8, 4], expected [4, 8]"));
  EXPECT_THAT([&] { G.add_rows(at::zeros({2}, at::kInt), at::zeros({2, 8})); }, throws("int64"));
  EXPECT_THAT([&] { G.add_rows(at::full({1}, 4, at::kLong), at::zeros({1, 8})); }, throws("outside the weight's 4"));
  EXPECT_THAT(
      [&] {
        Gradient(at::zeros({5})).add_outer(at::zeros({3, 1}), at::zeros({3, 5}));
      },
      throws("only a matrix"));
  EXPECT_THAT([&] { Gradient{at::zeros({2, 2}, at::kDouble)}; }, throws("the parameter is Double"));
  EXPECT_THAT([&] { Gradient{at::zeros({2, 2}, at::kHalf)}; }, throws("the parameter is Half"));
  EXPECT_THAT([&] { G.materialize(at::kHalf); }, throws("the result is Half, expected Float or BFloat16"));
  EXPECT_TRUE(G.empty());
}

TEST(Gradient, OfTwoTokensByHand) {
  Gradient G(zero_weight(2, 3));
  G.add_outer(at::tensor({1.f, 2.f, 0.f, -1.f}).view({2, 2}), at::tensor({1.f, 2.f, 3.f, 4.f, 5.f, 6.f}).view({2, 3}));
  EXPECT_TRUE(G.materialize().equal(at::tensor({1.f, 2.f, 3.f, -2.f, -1.f, 0.f}).view({2, 3})));
  EXPECT_EQ(G.sum_squares(true).item<double>(), 19);
  EXPECT_TRUE(G.finite().item<bool>());
}

TEST(Gradient, OfAVectorIsItsDenseTerms) {
  Gradient G(at::zeros({5}));
  G.add_dense(at::full({5}, 2.f));
  G.add_dense(at::full({5}, 3.f));
  EXPECT_TRUE(G.materialize().equal(at::full({5}, 5.f)));
}

TEST(Gradient, OfNoTokenIsZeroAndNotNone) {
  Gradient G(zero_weight(2, 3));
  EXPECT_TRUE(G.empty());
  G.add_outer(at::zeros({0, 2}), at::zeros({0, 3}));
  EXPECT_FALSE(G.empty());
  EXPECT_TRUE(G.materialize().equal(at::zeros({2, 3})));
  EXPECT_EQ(G.sum_squares(false).item<double>(), 0);
}

TEST(Gradient, OfMixedTermsEqualsTheirSumInDouble) {
  Gradient G(zero_weight(6, 5));
  at::Tensor dY = random({7, 6}, 1), X = random({7, 5}, 2), D = random({6, 5}, 3), rows = random({3, 5}, 4);
  at::Tensor index = at::tensor({4, 1, 4}, at::kLong);
  G.set_policy(Collapse::never, false);
  G.add_outer(dY, X);
  G.add_dense(D);
  G.add_rows(index, rows);
  at::Tensor expected = (dY.to(at::kDouble).t().mm(X.to(at::kDouble)) + D).index_add(0, index, rows.to(at::kDouble));
  // Ten contributions at most to an element, each rounded once.
  at::Tensor size = dY.abs().t().mm(X.abs()) + D.abs() + at::zeros({6, 5}).index_add(0, index, rows.abs());
  EXPECT_TRUE(within(G.materialize(), expected, size * (11 * 0x1p-24)));
}

TEST(Gradient, ATermThatArrivesAfterAScaleIsNotScaled) {
  Gradient G(zero_weight(2, 3));
  G.add_dense(at::full({2, 3}, 8.f));
  G.mul_(0.25);
  G.add_dense(at::full({2, 3}, 5.f));
  EXPECT_TRUE(G.materialize().equal(at::full({2, 3}, 7.f)));
  EXPECT_EQ(G.scale().read(), 0.25);
  G.clear();
  EXPECT_EQ(G.scale().read(), 1);
}

TEST(Gradient, AScaleOfZeroEndsWhatCameBeforeOnly) {
  Gradient G(zero_weight(2, 3));
  G.add_dense(at::full({2, 3}, 8.f));
  G.mul_(0);
  G.add_outer(at::full({1, 2}, 2.f), at::full({1, 3}, 3.f));
  EXPECT_TRUE(G.materialize().equal(at::full({2, 3}, 6.f)));
}

TEST(Gradient, AnEmptyGradientHasNothingToScale) {
  Gradient G(zero_weight(2, 3));
  G.mul_(0.5);
  G.add_dense(at::full({2, 3}, 8.f));
  EXPECT_TRUE(G.materialize().equal(at::full({2, 3}, 8.f)));
}

TEST(Gradient, MicroBatchesHaveTheBitsOfOneBatch) {
  at::Tensor dY = random({12, 6}, 1), X = random({12, 9}, 2);
  Gradient whole(zero_weight(6, 9)), parts(zero_weight(6, 9));
  whole.set_policy(Collapse::never, false);
  parts.set_policy(Collapse::never, false);
  whole.add_outer(dY, X);
  for (int i = 0; i < 4; ++i) parts.add_outer(dY.slice(0, 3 * i, 3 * i + 3), X.slice(0, 3 * i, 3 * i + 3));
  EXPECT_TRUE(same_bits(whole.materialize(), parts.materialize()));
}

// ---- What is kept -------------------------------------------------------------------------------------------------

TEST(Gradient, KeepsContiguousTensorsByReferenceAndCopiesTheRest) {
  at::Tensor dY = random({3, 16}, 1), X = random({3, 16}, 2);
  std::int64_t one = 3 * 16 * 4;
  auto held = [&](const at::Tensor& a, const at::Tensor& b) {
    Gradient G(zero_weight(16, 16));
    G.add_outer(a, b);
    EXPECT_TRUE(within(G.materialize(), a.to(at::kDouble).t().mm(b.to(at::kDouble)), sum_bound(a, b)));
    return G.held_bytes();
  };
  EXPECT_EQ(held(dY, X), 2 * one);
  EXPECT_EQ(held(dY, dY), one) << "a storage counts once";
  EXPECT_EQ(held(at::ones({1, 1}).expand({3, 16}), X), 2 * one) << "expanded";
  EXPECT_EQ(held(random({16, 3}, 3).t(), X), 2 * one) << "transposed";
  EXPECT_EQ(held(random({3, 32}, 4).slice(1, 0, 16), X), 2 * one) << "scattered rows";
  EXPECT_EQ(held(random({100, 16}, 5).slice(0, 0, 3), X), 2 * one) << "a part of a larger buffer";
}

TEST(Gradient, RaisesWhereATensorItKeepsHasChanged) {
  Gradient G(zero_weight(16, 16));
  at::Tensor dY = random({3, 16}, 1), X = random({3, 16}, 2);
  G.add_outer(dY, X);
  X.mul_(2);
  EXPECT_THAT([&] { G.materialize(); }, throws("[3, 16] that the gradient refers to was changed in place"));
  EXPECT_THAT([&] { G.sum_squares(false); }, throws("clone it"));
  G.clear();
  G.add_outer(dY, X);
  dY.view({48}).zero_();
  EXPECT_THAT([&] { G.expression(); }, throws("changed in place"));
}

TEST(Gradient, WhatWasCopiedMayChange) {
  Gradient G(zero_weight(16, 16));
  at::Tensor dY = random({16, 3}, 1), X = random({3, 16}, 2);
  G.add_outer(dY.t(), X);
  at::Tensor before = G.materialize();
  dY.zero_();
  EXPECT_TRUE(same_bits(G.materialize(), before));
}

// ---- Collapse -----------------------------------------------------------------------------------------------------

TEST(Gradient, AnFp32CollapseChangesNoBit) {
  auto bits = [](Collapse policy, at::ScalarType dtype) {
    Gradient G(zero_weight(6, 9));
    G.set_policy(policy, /*exact=*/true);
    for (int i = 0; i < 4; ++i) {
      G.add_outer(random({5, 6}, 10 + i, dtype), random({5, 9}, 20 + i, dtype));
      if (i == 1) G.mul_(0.3);
    }
    G.add_rows(at::tensor({1, 1, 5}, at::kLong), random({3, 9}, 30, dtype));
    EXPECT_EQ(G.collapses() > 0, policy != Collapse::never);
    return G.materialize();
  };
  for (auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    EXPECT_TRUE(same_bits(bits(Collapse::always, dtype), bits(Collapse::never, dtype)));
    EXPECT_TRUE(same_bits(bits(Collapse::automatic, dtype), bits(Collapse::never, dtype)));
  }
}

TEST(Gradient, CollapsesWhereTermsHoldMoreThanTheDenseGradient) {
  // 16·16 numbers against 32 a token: break-even at 8 tokens.
  Gradient G(zero_weight(16, 16));
  G.add_outer(random({8, 16}, 1), random({8, 16}, 2));
  EXPECT_EQ(G.collapses(), 0);
  EXPECT_EQ(G.held_bytes(), G.dense_bytes());
  G.add_outer(random({1, 16}, 3), random({1, 16}, 4));
  EXPECT_EQ(G.collapses(), 1);
  EXPECT_EQ(G.held_bytes(), G.dense_bytes());
}

TEST(Gradient, ABf16CollapseIsOneRounding) {
  Gradient G(zero_weight(16, 16, at::kBFloat16)), exact(zero_weight(16, 16, at::kBFloat16)),
      kept(zero_weight(16, 16, at::kBFloat16));
  exact.set_policy(Collapse::automatic, /*exact=*/true);
  kept.set_policy(Collapse::never, false);
  for (Gradient* g : {&G, &exact, &kept})
    g->add_outer(random({9, 16}, 1, at::kBFloat16), random({9, 16}, 2, at::kBFloat16));
  EXPECT_EQ(G.held_bytes(), 16 * 16 * 2);
  EXPECT_EQ(exact.held_bytes(), 16 * 16 * 4);
  EXPECT_TRUE(same_bits(G.materialize(at::kBFloat16), kept.materialize(at::kBFloat16)));
  EXPECT_TRUE(same_bits(exact.materialize(), kept.materialize()));
}

TEST(Gradient, ACollapseDoesNotWriteIntoTheUsersTensor) {
  Gradient G(zero_weight(16, 16));
  G.set_policy(Collapse::always, false);
  at::Tensor D = random({16, 16}, 1), before = D.clone();
  G.add_dense(D);
  G.add_outer(random({2, 16}, 2), random({2, 16}, 3));
  EXPECT_TRUE(same_bits(D, before));
}

}  // namespace
}  // namespace forge
