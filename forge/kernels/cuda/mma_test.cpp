#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "forge/base/testing/random.h"
#include "forge/kernels/cuda/choose_kernel.h"
#include "forge/kernels/cuda/testing/emulated.h"

namespace forge {
namespace {

using namespace forge::testing;

// What goes wrong at an edge: of a piece of 8 columns, of a product, of a warp's part, of a tile.
constexpr Shape kMmaShapes[] = {{1, 1}, {7, 9}, {16, 8}, {130, 40}, {70, 131}, {128, 128}, {1, 300}, {260, 5}};

// Chains of fewer tokens than a product, of whole ones, of whole stages, and of a few more than all stages hold.
std::vector<GradientSpec> mma_specs() {
  using enum TermSpec::Kind;
  constexpr DType bf16 = DType::bf16, f16 = DType::f16;
  return {{"no token", {{outer, 0, 1, bf16, bf16}}},
          {"1 token", {{outer, 1, 1, f16, f16}}, 0.5f},
          {"15 tokens", {{outer, 15, 1, bf16, bf16}}},
          {"a product", {{outer, 16, 1, bf16, bf16}}},
          {"17 tokens", {{outer, 17, 1, f16, f16}}, -2},
          {"a stage", {{outer, 32, 1, bf16, bf16}}},
          {"all stages and 9 tokens", {{outer, 137, 1, bf16, bf16}}, 0.25f},
          {"two products and what was there",
           {{dense, 0, 2, bf16}, {outer, 40, 1, bf16, bf16}, {outer, 70, 1, f16, f16}, {dense, 0, 1, DType::f32}}}};
}

// Calls f(shape, expression, turn), its operands aligned in every second turn.
template <class F>
void for_each_gradient_of_halves(F&& f) {
  Random random(51);
  std::size_t turn = 0;
  for (const GradientSpec& spec : mma_specs())
    for (Shape shape : kMmaShapes) {
      Gradient g(shape, spec, random, whole_numbers(random));
      SCOPED_TRACE(::testing::Message() << describe(shape, spec) << ", turn " << turn);
      ASSERT_TRUE(cuda::can_multiply_halves(g.expression()));
      Aligned copy(g.expression());
      bool aligned = (turn + turn / std::size(kMmaShapes)) % 2 == 0;
      f(shape, aligned ? copy.expression() : g.expression(), turn);
      ++turn;
    }
}

TEST(Mma, MaterializesWholeNumbersAsRef) {
  for_each_gradient_of_halves([](Shape shape, const Expression& G, std::size_t turn) {
    DType dtype = turn % 3 ? DType::f32 : DType::bf16;
    Buffer expected = run_materialize(reference(), G, dtype), emulated(shape.out, shape.in, dtype, 5);
    emulate(turn, [&] { cuda::materialize(emulated.view(), G, {}); });
    ASSERT_TRUE(same_values(expected, emulated));
  });
}

TEST(Mma, UpdatesFromWholeNumbersToTheBitsOfRefInEveryInstance) {
  Random random(53);
  const std::vector<Instance> all = instances();
  for_each_gradient_of_halves([&](Shape shape, const Expression& G, std::size_t turn) {
    const Instance& instance = all[turn % all.size()];
    SCOPED_TRACE(::testing::Message() << instance.rule.name() << ", " << instance.storage);
    Weight expected = padded_weight(shape, instance.storage, instance.rule.rule(), turn % 4 == 0 ? 3 : 8 - shape.in % 8,
                                    [&] { return random.uniform(-1, 1); });
    Weight emulated = expected;
    run_update(reference(), expected, G, instance.rule);
    emulate(turn, [&] { cuda::update(emulated.W.view(), emulated.moments(), G, instance.rule, {}); });
    ASSERT_TRUE(same_bits(expected, emulated));
  });
}

TEST(Mma, FusedEqualsTwoPhase) {
  Random random(57);
  expect_fused_equals_two_phase(mma_specs().back(), {}, random);
}

TEST(Mma, SumsSquaresOfWhatItStores) {
  Random random(59);
  constexpr Shape kShape = {140, 150};
  Gradient g(kShape, mma_specs().back(), random);
  Buffer D(kShape.out, kShape.in, DType::f32, 0);
  std::vector<double> workspace(cuda::norm_workspace_bytes(g.expression()) / sizeof(double));
  double sum = -1;
  emulate(4, [&] {
    cuda::materialize(D.view(), g.expression(), {});
    cuda::sum_squares(&sum, g.expression(), std::as_writable_bytes(std::span(workspace)), {});
  });
  Term stored = Dense{D.view()};
  EXPECT_EQ(sum, run_sum_squares(reference(), {kShape.out, kShape.in, {&stored, 1}}));
}

// Tokens in their order decide the bits on tensor cores, tiles and neighbours do not.
TEST(Mma, AnElementDoesNotDependOnItsPlace) {
  Random random(61);
  Gradient g({200, 140}, {"tokens", {{TermSpec::outer, 45, 1, DType::bf16, DType::bf16}}}, random);
  std::vector<std::vector<std::int64_t>> index;
  std::vector<Buffer> gathered;
  std::vector<Term> part = shard_terms(g.expression(), 37, 100, 21, 90, index, gathered);
  Buffer whole(200, 140, DType::f32), shard(100, 90, DType::f32);
  emulate(6, [&] {
    cuda::materialize(whole.view(), g.expression(), {});
    cuda::materialize(shard.view(), {100, 90, part}, {});
  });
  for (std::int64_t r = 0; r < 100; ++r)
    for (std::int64_t c = 0; c < 90; ++c) ASSERT_EQ(shard.at(r, c), whole.at(37 + r, 21 + c));
}

TEST(ChooseKernel, TakesTensorCoresForHalvesUnlessExact) {
  using enum TermSpec::Kind;
  constexpr DType f32 = DType::f32, bf16 = DType::bf16, f16 = DType::f16;
  Random random(63);
  Weight adamw({8, 8}, {Format::bf16_stochastic, Format::int8}, kRuleInfo<rules::AdamW>, [] { return 0.f; });
  Weight unlisted({8, 8}, {Format::fp32, Format::fp8}, kRuleInfo<rules::AdamW>, [] { return 0.f; });
  auto chosen = [&](const std::vector<TermSpec>& terms, bool exact, Weight& weight) {
    Gradient g({8, 8}, {"", terms}, random);
    return to_string(
        cuda::choose_kernel(kRuleInfo<rules::AdamW>, weight.W.view(), weight.moments(), g.expression(), exact));
  };
  const TermSpec halves = {outer, 3, 1, bf16, bf16};
  EXPECT_EQ(chosen({halves}, false, adamw), "fused, tensor cores");
  EXPECT_EQ(chosen({halves, {outer, 2, 1, f16, f16}, {dense}}, false, unlisted), "two-phase, tensor cores");
  EXPECT_EQ(chosen({halves}, true, adamw), "fused, fp32 multiply-adds");
  for (const TermSpec& other : {TermSpec{outer, 3}, TermSpec{outer, 3, 1, bf16, f16}, TermSpec{outer, 3, 1, f32, bf16},
                                TermSpec{outer, 3, 2, bf16, bf16}, TermSpec{rows, 3, 1, bf16}})
    EXPECT_EQ(chosen({halves, other}, false, adamw), "fused, fp32 multiply-adds");
  EXPECT_EQ(chosen({{dense}}, false, adamw), "fused, fp32 multiply-adds");
}

}  // namespace
}  // namespace forge
