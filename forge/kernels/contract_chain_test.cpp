// Contract 2, one_chain_per_element: each element of G is one sequential fp32 FMA chain, whatever runs it.
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "forge/base/openmp_executor.h"
#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

// Calls f(place) for every target and executor.
template <class F>
void everywhere(F&& f) {
  for (Target target : available_targets())
    for (const NamedExecutor& e : executors()) {
      SCOPED_TRACE(::testing::Message() << name_of(target) << ", " << e.name);
      f(Place{e.executor, target});
    }
}

void expect_defined(Shape shape, const GradientSpec& spec, const Expression& G, Random& random) {
  std::vector<float> defined = defined_gradient(G);
  Buffer rounded =
      Buffer(shape.out, shape.in, DType::bf16, 5).fill([i = 0u, &defined]() mutable { return defined[i++]; });
  Storage storage = storages()[static_cast<std::size_t>(random.below(std::ssize(storages())))];
  const RuleCase& rule = rule_cases()[static_cast<std::size_t>(random.below(std::ssize(rule_cases())))];
  RuleStep step = rule.prepare(2);
  Weight start(shape, storage, step.rule(), [&] { return random.uniform(-1, 1); });
  Weight expected = start;
  apply(expected, defined, step);
  SCOPED_TRACE(::testing::Message() << describe(shape, spec) << ", " << rule.name << ", " << storage);
  std::optional<Sums> sums;
  everywhere([&](const Place& place) {
    Buffer D = run_materialize(place, G);
    EXPECT_TRUE(D.canaries_live());
    EXPECT_TRUE(same_numbers(D.numbers(), defined));
    EXPECT_EQ(run_materialize(place, G, DType::bf16).bytes(), rounded.bytes());
    Weight updated = start;
    Sums here = run_update(place, updated, G, step);
    EXPECT_TRUE(same_bits(updated, expected));
    EXPECT_TRUE(same_sums(here, sums.value_or(here)));
    sums = here;
  });
}

TEST(ContractChain, EveryTargetGivesTheDefinedBits) {
  Random random(21);
  for (Shape shape : shapes())
    for (const GradientSpec& spec : gradient_specs()) {
      Gradient gradient(shape, spec, random);
      expect_defined(shape, spec, gradient.expression(), random);
      if (HasFailure()) return;
    }
}

TEST(ContractChain, EveryTargetGivesTheDefinedBitsOnWildNumbers) {
  Random random(22);
  for (Shape shape : {Shape{7, 17}, Shape{13, 131}})
    for (const GradientSpec& spec : gradient_specs()) {
      Gradient gradient(shape, spec, random, [&] { return random.wild(); });
      std::vector<float> defined = defined_gradient(gradient.expression());
      everywhere([&](const Place& place) {
        EXPECT_TRUE(same_numbers(run_materialize(place, gradient.expression()).numbers(), defined)) << spec.name;
      });
    }
}

TEST(ContractChain, RowAndColumnShardsAreSlicesOfTheWhole) {
  Random random(23);
  constexpr Shape kShape = {37, 515};
  struct Cut {
    std::int64_t row, rows, col, cols;
  };
  for (const GradientSpec& spec : gradient_specs()) {
    Gradient gradient(kShape, spec, random);
    Expression G = gradient.expression();
    std::vector<float> whole = defined_gradient(G);
    for (Cut cut :
         {Cut{0, 18, 0, 515}, Cut{18, 19, 0, 515}, Cut{0, 37, 0, 257}, Cut{0, 37, 257, 258}, Cut{5, 1, 3, 9}}) {
      std::vector<std::vector<std::int64_t>> index;
      std::vector<Buffer> gathered;
      std::vector<Term> terms = shard_terms(G, cut.row, cut.rows, cut.col, cut.cols, index, gathered);
      std::vector<float> slice;
      for (std::int64_t r = 0; r < cut.rows; ++r)
        for (std::int64_t c = 0; c < cut.cols; ++c)
          slice.push_back(whole[static_cast<std::size_t>((cut.row + r) * kShape.in + cut.col + c)]);
      for (Target target : available_targets()) {
        Buffer D = run_materialize({executors()[1].executor, target}, {cut.rows, cut.cols, terms, G.scale});
        EXPECT_TRUE(same_numbers(D.numbers(), slice)) << spec.name << ", " << name_of(target);
      }
    }
  }
}

// Contracts 2 and 5 (noise_depends_on_the_element_only): a shard has the bits of the whole, its noise too.
TEST(ContractChain, AShardOfWIsUpdatedInItsPlace) {
  Random random(24);
  constexpr Shape kShape = {20, 91};
  Gradient gradient(kShape, {"", {{TermSpec::outer, 9}, {TermSpec::dense}}, 0.5f}, random);
  Expression G = gradient.expression();
  RuleStep step = step_of<rules::AdamWAmsgrad>({.lr = 1e-2, .amsgrad = true}, 2);
  for (const Storage& storage : storages()) {
    SCOPED_TRACE(::testing::Message() << storage);
    bool blocks = info_of(storage.state).columns_of_rest > 1;
    std::int64_t cut = blocks ? kBlockColumns : 41;
    Weight start(kShape, storage, step.rule(), [&] { return random.uniform(-1, 1); });
    everywhere([&](const Place& place) {
      Weight whole = start, by_columns = start, by_rows = start;
      run_update(place, whole, G, step);
      auto update_shard = [&](Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t col,
                              std::int64_t cols) {
        std::vector<std::vector<std::int64_t>> index;
        std::vector<Buffer> gathered;
        std::vector<Term> terms = shard_terms(G, row, rows, col, cols, index, gathered);
        auto shard = [&](const Stored& m) { return shard_of(m, row, rows, col, cols); };
        std::vector<Stored> S;
        for (const Stored& s : weight.moments()) S.push_back(shard(s));
        Expression part = {rows, cols, terms, G.scale};
        in_context(place, part, [&](const Context& c) { update(shard(weight.W.view()), S, part, step, c); });
      };
      update_shard(by_columns, 0, kShape.out, 0, cut);
      update_shard(by_columns, 0, kShape.out, cut, kShape.in - cut);
      update_shard(by_rows, 0, 7, 0, kShape.in);
      update_shard(by_rows, 7, kShape.out - 7, 0, kShape.in);
      EXPECT_TRUE(same_bits(whole, by_columns));
      EXPECT_TRUE(same_bits(whole, by_rows));
    });
  }
}

TEST(ContractChain, OneBatchEqualsFourMicroBatches) {
  Random random(25);
  constexpr Shape kShape = {37, 515};
  for (std::int64_t tokens : {4, 64, 600, 1100})
    for (DType dtype : kOperandDTypes) {
      Gradient gradient(kShape, {"", {{TermSpec::outer, tokens, 0.7f, dtype, DType::bf16}}}, random);
      const Outer& batch = std::get<Outer>(gradient.terms()[0]);
      std::vector<Term> micro;
      std::int64_t cuts[] = {0, 1, tokens / 3 + 1, tokens - 1, tokens};
      for (int i = 0; i < 4; ++i) {
        auto part = [&](ConstMatrix m) {
          return ConstMatrix{m.row(cuts[i]), m.dtype, cuts[i + 1] - cuts[i], m.cols, m.stride};
        };
        micro.push_back(Outer{part(batch.dY), part(batch.X), batch.scale});
      }
      for (Target target : available_targets()) {
        if (target == Target::ref && tokens > 600) continue;
        OpenMpExecutor threads(3);
        Place place = {threads, target};
        EXPECT_EQ(run_materialize(place, {kShape.out, kShape.in, micro}).bytes(),
                  run_materialize(place, gradient.expression()).bytes())
            << tokens << " tokens, " << name_of(target);
      }
    }
}

TEST(ContractChain, ACollapsedPrefixEqualsTheWhole) {
  Random random(26);
  constexpr Shape kShape = {13, 131};
  for (const GradientSpec& spec : gradient_specs()) {
    Gradient gradient(kShape, spec, random);
    Expression G = gradient.expression();
    std::vector<float> whole = defined_gradient(G);
    everywhere([&](const Place& place) {
      // One term at a time, each continuing the chain in place; the scale comes last.
      Buffer D = run_materialize(place, {G.out, G.in, {}});
      for (const Term& term : G.terms) {
        std::vector<Term> chain = {Dense{D.view()}, term};
        Expression continued = {G.out, G.in, chain};
        in_context(place, continued, [&](const Context& c) { materialize(D.view(), continued, c); });
      }
      std::vector<Term> collapsed = {Dense{D.view()}};
      EXPECT_TRUE(same_numbers(run_materialize(place, {G.out, G.in, collapsed, G.scale}).numbers(), whole))
          << spec.name;
      EXPECT_TRUE(D.canaries_live());
    });
  }
}

TEST(ContractChain, ATokenOfAnEmbeddingMayRepeatAndKeepsItsOrder) {
  // 2²⁴ + 1 − 2²⁴ is 0 in this order and 1 in the others.
  Buffer values(4, 1, DType::f32);
  const float in_order[] = {0x1p24f, 1, -0x1p24f, 5};
  for (int t = 0; t < 4; ++t) values.set(t, 0, in_order[t]);
  const std::int64_t index[] = {2, 2, 2, 0};
  Term term = Rows{index, values.view()};
  everywhere([&](const Place& place) {
    EXPECT_EQ(run_materialize(place, {3, 1, std::span(&term, 1)}).numbers(), (std::vector<float>{5, -0.f, 0}));
  });
}

}  // namespace
}  // namespace forge
