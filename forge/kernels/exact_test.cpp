// Data on which every order of summation gives the same G, and data on which none but one does.
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

// G in int64: small integers, |sum| < 2²⁴, scales that are powers of two. −0 and 0 are the same integer.
std::vector<std::int64_t> integer_gradient(const Expression& G) {
  std::vector<std::int64_t> g(static_cast<std::size_t>(G.out * G.in));
  auto integer = [](const ConstMatrix& m, std::int64_t r, std::int64_t c) { return std::int64_t(number(m, r, c)); };
  for (const Term& term : G.terms)
    for (std::int64_t r = 0; r < G.out; ++r)
      for (std::int64_t c = 0; c < G.in; ++c) {
        std::int64_t sum = 0;
        if (const auto* o = std::get_if<Outer>(&term))
          for (std::int64_t t = o->X.rows - 1; t >= 0; --t)
            sum += std::int64_t(o->scale) * integer(o->dY, t, r) * integer(o->X, t, c);
        if (const auto* e = std::get_if<Rows>(&term))
          for (std::int64_t t = 0; t < e->values.rows; ++t)
            if (e->index[t] == r) sum += std::int64_t(e->scale) * integer(e->values, t, c);
        if (const auto* d = std::get_if<Dense>(&term)) sum += std::int64_t(d->scale) * integer(d->D, r, c);
        g[static_cast<std::size_t>(r * G.in + c)] += sum;
      }
  return g;
}

TEST(ExactIntegers, GiveTheIntegerGradient) {
  using enum TermSpec::Kind;
  Random random(51);
  const GradientSpec spec = {
      "", {{outer, 33, 1, DType::bf16}, {rows, 50, -2}, {outer, 570}, {dense, 0, 4, DType::bf16}, {outer, 1, -1}}};
  for (Shape shape : {Shape{1, 1}, Shape{7, 17}, Shape{37, 515}, Shape{200, 3}, Shape{3, 4100}}) {
    Gradient gradient(shape, spec, random, [&] { return static_cast<float>(random.below(41) - 20); });
    std::vector<std::int64_t> expected = integer_gradient(gradient.expression());
    for (Target target : available_targets())
      for (const NamedExecutor& e : executors()) {
        std::vector<float> D = run_materialize({e.executor, target}, gradient.expression()).numbers();
        std::int64_t wrong = 0;
        for (std::size_t i = 0; i < D.size(); ++i) wrong += D[i] != static_cast<float>(expected[i]);
        EXPECT_EQ(wrong, 0) << describe(shape, spec) << ", " << name_of(target) << ", " << e.name;
      }
  }
}

TEST(ExactIntegers, GiveTheIntegerNorm) {
  Random random(52);
  Gradient gradient({37, 515}, {"", {{TermSpec::outer, 64}}}, random,
                    [&] { return static_cast<float>(random.below(9) - 4); });
  std::vector<std::int64_t> g = integer_gradient(gradient.expression());
  std::int64_t squares = std::inner_product(g.begin(), g.end(), g.begin(), std::int64_t{0});
  for (Target target : available_targets())
    EXPECT_EQ(run_sum_squares({executors()[1].executor, target}, gradient.expression()), static_cast<double>(squares));
}

// Tokens whose contributions cancel: (2²⁴, 1, 1, …, −2²⁴) at places that depend on the column.
Gradient order_probe(Shape shape, std::int64_t tokens, Random& random) {
  Gradient gradient(shape, {"", {{TermSpec::outer, tokens}}}, random, [] { return 1.f; });
  const Outer& term = std::get<Outer>(gradient.terms()[0]);
  for (std::int64_t c = 0; c < shape.in; ++c) {
    std::int64_t large = random.below(tokens), back = random.below(tokens);
    auto set = [&](std::int64_t t, float x) { static_cast<float*>(const_cast<void*>(term.X.row(t)))[c] = x; };
    set(large, 0x1p24f);
    if (back != large) set(back, -0x1p24f);
  }
  return gradient;
}

TEST(OrderProbe, EveryTargetThreadAndShardKeepsTheOrder) {
  Random random(53);
  for (std::int64_t tokens : {5, 64, 600}) {
    constexpr Shape kShape = {13, 131};
    Gradient gradient = order_probe(kShape, tokens, random);
    std::vector<float> defined = defined_gradient(gradient.expression());
    const Outer& term = std::get<Outer>(gradient.terms()[0]);
    for (Target target : available_targets())
      for (const NamedExecutor& e : executors()) {
        EXPECT_TRUE(same_numbers(run_materialize({e.executor, target}, gradient.expression()).numbers(), defined));
        std::vector<std::vector<std::int64_t>> index;
        std::vector<Buffer> gathered;
        std::vector<Term> shard = shard_terms(gradient.expression(), 4, 9, 0, 131, index, gathered);
        EXPECT_TRUE(same_numbers(run_materialize({e.executor, target}, {9, 131, shard}).numbers(),
                                 std::span(defined).subspan(4 * 131)));
      }
    // The probe has power: the tokens backwards, and in two halves that are added, give other bits.
    std::vector<Term> tokens_backwards;
    for (std::int64_t t = tokens - 1; t >= 0; --t) {
      auto token = [&](ConstMatrix m) { return ConstMatrix{m.row(t), m.dtype, 1, m.cols, m.stride}; };
      tokens_backwards.push_back(Outer{token(term.dY), token(term.X)});
    }
    EXPECT_FALSE(same_numbers(defined_gradient({kShape.out, kShape.in, tokens_backwards}), defined)) << tokens;
    auto part = [&](std::int64_t begin, std::int64_t end) {
      auto view = [&](ConstMatrix m) { return ConstMatrix{m.row(begin), m.dtype, end - begin, m.cols, m.stride}; };
      Term half = Outer{view(term.dY), view(term.X)};
      return defined_gradient({kShape.out, kShape.in, std::span(&half, 1)});
    };
    std::vector<float> first = part(0, tokens / 2), second = part(tokens / 2, tokens), sum;
    for (std::size_t i = 0; i < first.size(); ++i) sum.push_back(first[i] + second[i]);
    EXPECT_FALSE(same_numbers(sum, defined)) << tokens;
  }
}

}  // namespace
}  // namespace forge
