#include "forge/torch/gram.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "forge/torch/gradient.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::random;
using testing::throws;
using testing::zero_weight;

double sum_squares(const Gradient& G, bool exact) { return G.sum_squares(exact).item<double>(); }
bool finite(const Gradient& G) { return G.finite().item<bool>(); }
// Whether Gram's products tell.
bool gram_holds(const Gradient& G) {
  GramCache cache;
  std::optional<Known> known = gram_sum_squares(G.expression(), cache);
  return known && known->holds.item<float>() != 0;
}

// One that a norm over all gradients with this ledger finds.
std::shared_ptr<Gradient> entered(const at::Tensor& parameter, const std::shared_ptr<Ledger>& ledger) {
  auto G = std::make_shared<Gradient>(parameter, ledger);
  ledger->enter(G);
  return G;
}

TEST(Gradient, GramAndChainGiveTheSameNorm) {
  for (auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    auto ledger = std::make_shared<Ledger>();
    Gradient G(zero_weight(40, 30), ledger);
    G.set_policy(Collapse::never, false);
    G.add_outer(random({5, 40}, 1, dtype), random({5, 30}, 2, dtype));
    G.mul_(0.37);
    G.add_outer(random({3, 40}, 3, dtype), random({3, 30}, 4, dtype));
    double gram = sum_squares(G, false), chain = sum_squares(G, true);
    ASSERT_TRUE(ledger->gram().RRt.defined()) << "Gram was not used";
    EXPECT_NEAR(gram / chain, 1, 1e-5);
    EXPECT_NE(gram, chain) << "the two paths are one";
  }
}

TEST(Gradient, GramKnowsRowsAndBothTogether) {
  at::Tensor index = at::tensor({7, 0, 7, 3}, at::kLong);
  for (bool with_outer : {false, true}) {
    auto ledger = std::make_shared<Ledger>();
    Gradient G(zero_weight(40, 30), ledger);
    G.set_policy(Collapse::never, false);
    G.add_rows(index, random({4, 30}, 1));
    G.mul_(0.5);
    if (with_outer) G.add_outer(random({5, 40}, 2), random({5, 30}, 3));
    G.add_rows(index.slice(0, 1).contiguous(), random({3, 30}, 4));
    double gram = sum_squares(G, false);
    ASSERT_TRUE(ledger->gram().RRt.defined()) << "Gram was not used";
    EXPECT_NEAR(gram / sum_squares(G, true), 1, 1e-5);
  }
}

TEST(Gradient, WeightsWithOneXShareItsGramMatrix) {
  at::Tensor X = random({5, 30}, 1);
  auto ledger = std::make_shared<Ledger>();
  Gradient q(zero_weight(40, 30), ledger), k(zero_weight(40, 30), ledger);
  q.add_outer(random({5, 40}, 2), X);
  k.add_outer(random({5, 40}, 3), X);
  sum_squares(q, false);
  const void* of_q = ledger->gram().RRt.data_ptr();
  EXPECT_NEAR(sum_squares(k, false) / sum_squares(k, true), 1, 1e-5);
  EXPECT_EQ(ledger->gram().RRt.data_ptr(), of_q);
  q.clear();
  EXPECT_FALSE(ledger->gram().RRt.defined()) << "X may be gone, and another tensor lie where it lay";
}

TEST(Gradient, TheSecondNormInARowFindsThemAllWithTheSameBits) {
  for (int threads : {1, 2}) {
    int before = at::get_num_threads();
    at::set_num_threads(threads);
    auto ledger = std::make_shared<Ledger>();
    std::vector<std::shared_ptr<Gradient>> together;
    std::vector<double> alone;
    for (unsigned i = 0; i < 4; ++i) {
      std::int64_t T = 4 + 40 * i;
      at::Tensor dY = random({T, 400}, 2 * i), X = random({T, 500}, 2 * i + 1);
      together.push_back(entered(zero_weight(400, 500), ledger));
      together.back()->add_outer(dY, X);
      Gradient one(zero_weight(400, 500));
      one.add_outer(dY, X);
      alone.push_back(sum_squares(one, false));
    }
    EXPECT_EQ(sum_squares(*together[2], false), alone[2]);
    EXPECT_EQ(ledger->gram().RRt.size(0), 84) << "of the one that was asked";
    EXPECT_EQ(sum_squares(*together[0], false), alone[0]);
    EXPECT_EQ(ledger->gram().RRt.size(0), 124) << "of the last of all";
    together[1]->mul_(0.5);
    EXPECT_EQ(sum_squares(*together[1], false), alone[1] / 4);
    EXPECT_EQ(sum_squares(*together[3], false), alone[3]);
    together[3]->add_outer(random({2, 400}, 9), random({2, 500}, 10));
    EXPECT_NEAR(sum_squares(*together[3], false) / sum_squares(*together[3], true), 1, 1e-5) << "a sum from before";
    at::set_num_threads(before);
  }
}

TEST(Gradient, ANormDoesNotAskAnotherGradientThatMayNotBeAsked) {
  auto ledger = std::make_shared<Ledger>();
  auto a = entered(zero_weight(40, 30), ledger), b = entered(zero_weight(40, 30), ledger);
  auto changed = entered(zero_weight(40, 30), ledger), spent = entered(zero_weight(40, 30), ledger);
  auto empty = entered(zero_weight(40, 30), ledger);
  at::Tensor dY = random({5, 40}, 2);
  a->add_outer(random({5, 40}, 1), random({5, 30}, 3));
  b->add_outer(random({5, 40}, 4), random({5, 30}, 5));
  changed->add_outer(dY, random({5, 30}, 6));
  spent->spend();
  dY.add_(1);
  sum_squares(*a, false);
  EXPECT_NEAR(sum_squares(*b, false) / sum_squares(*b, true), 1, 1e-5);
  EXPECT_THAT([&] { sum_squares(*changed, false); }, throws("clone it"));
  EXPECT_EQ(sum_squares(*empty, false), 0);
}

TEST(Gradient, ANearlyCancellingNormComesFromTheChain) {
  // Two tokens that cancel but for one part in 2¹²: the Gram sum would lose most of its digits.
  at::Tensor dY = random({1, 40}, 1), X = random({1, 30}, 2);
  Gradient G(zero_weight(40, 30));
  G.add_outer(at::cat({dY, -dY}), at::cat({X, X * (1 + 0x1p-12)}));
  EXPECT_EQ(sum_squares(G, false), sum_squares(G, true));
  EXPECT_FALSE(gram_holds(G));
}

TEST(Gradient, LongBatchesAndOtherTermsTakeTheChain) {
  Gradient G(zero_weight(8, 8));
  G.set_policy(Collapse::never, false);
  G.add_outer(random({4, 8}, 1), random({4, 8}, 2));
  EXPECT_FALSE(gram_holds(G)) << "at break-even";
  G.clear();
  G.add_outer(random({2, 8}, 1), random({2, 8}, 2));
  EXPECT_TRUE(gram_holds(G));
  G.add_dense(random({8, 8}, 3));
  EXPECT_FALSE(gram_holds(G));
}

TEST(Gradient, KnowsWhetherItIsFinite) {
  Gradient G(zero_weight(40, 30));
  at::Tensor dY = random({2, 40}, 1);
  dY[1][3] = std::numeric_limits<float>::infinity();
  G.add_outer(dY, random({2, 30}, 2));
  EXPECT_FALSE(finite(G));
  EXPECT_FALSE(std::isfinite(sum_squares(G, false)));
}

TEST(Gradient, ANormBeyondFp32IsStillFinite) {
  Gradient G(zero_weight(40, 30));
  G.add_outer(at::full({1, 40}, 1e15f), at::full({1, 30}, 1e15f));
  EXPECT_TRUE(finite(G));
  EXPECT_NEAR(sum_squares(G, false) / (1200 * 1e60), 1, 1e-5);
}

}  // namespace
}  // namespace forge
