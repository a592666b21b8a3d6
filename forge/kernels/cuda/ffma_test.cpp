#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "forge/base/testing/random.h"
#include "forge/base/testing/refusal.h"
#include "forge/kernels/cuda/choose_kernel.h"
#include "forge/kernels/cuda/instances.h"
#include "forge/kernels/cuda/testing/emulated.h"

namespace forge {
namespace {

using namespace forge::testing;

constexpr cuda::Launch kExact = {.stream = nullptr, .numbers = {}, .exact = true};

void update_exactly(Weight& weight, const Expression& G, const RuleStep& rule, const cuda::OnDevice& numbers = {}) {
  cuda::update(weight.W.view(), weight.moments(), G, rule, {.numbers = numbers, .exact = true});
}

// Shapes: less than a thread's piece; one row, one column; a tile and a little; whole tiles and their parts.
constexpr Shape kFfmaShapes[] = {{1, 1}, {5, 3}, {130, 9}, {3, 300}, {128, 128}, {137, 260}, {64, 132}, {1, 129}};

// What gradients are made of: all the ways that operands go to shared memory, chains of no token, of a few, of whole
// stages and of a few more; terms of each kind, first, between and last.
std::vector<GradientSpec> ffma_specs() {
  using enum TermSpec::Kind;
  constexpr DType f32 = DType::f32, bf16 = DType::bf16, f16 = DType::f16;
  return {{"no term", {}, -1},
          {"no token", {{outer, 0}}},
          {"1 token", {{outer, 1}}, 0.3f},
          {"15 tokens", {{outer, 15}}},
          {"a stage", {{outer, 16}}},
          {"all stages and one token", {{outer, 65}}, -0.7f},
          {"151 tokens", {{outer, 151}}},
          {"scaled", {{outer, 20, 1.1f}}},
          {"bf16", {{outer, 40, 1, bf16, bf16}}},
          {"fp16 and fp32", {{outer, 19, 0.9f, f16, f32}}, 0.6f},
          {"three products", {{outer, 33}, {outer, 5, -0.5f, bf16, f16}, {outer, 70}}, 1.5f},
          {"rows", {{rows, 23, 0.7f}}},
          {"minus zeros and a token tail", {{minus_zeros}, {outer, 3}}},
          {"dense, then tokens", {{dense, 0, 1, bf16}, {outer, 18}}},
          {"everything",
           {{outer, 17, 0.6f},
            {rows, 9, -1.7f, f16},
            {dense, 0, 1.1f},
            {outer, 0},
            {outer, 49},
            {rows, 0},
            {dense, 0, 0.7f, f16},
            {rows, 5},
            {outer, 2, 1, bf16, f32}},
           0.37f}};
}

// Calls f(shape, spec, expression, turn): each gradient with each shape, its operands aligned in every second turn.
template <class F>
void for_each_gradient(F&& f) {
  Random random(29);
  std::size_t turn = 0;
  for (const GradientSpec& spec : ffma_specs())
    for (const Shape& shape : kFfmaShapes) {
      // The last shape's numbers are -0 and 1: where all its products are -0, a chain ends as -0.
      bool zeros = &shape == std::end(kFfmaShapes) - 1;
      Gradient g(shape, spec, random, [&] { return !zeros ? random.uniform(-1, 1) : random.below(2) ? -0.f : 1.f; });
      SCOPED_TRACE(::testing::Message() << describe(shape, spec) << ", turn " << turn);
      bool aligned = (turn + turn / std::size(kFfmaShapes)) % 2 == 0;
      Aligned copy(g.expression());
      f(shape, aligned ? copy.expression() : g.expression(), turn);
      ++turn;
    }
}

TEST(Ffma, MaterializesTheBitsOfRef) {
  for_each_gradient([](Shape shape, const Expression& G, std::size_t turn) {
    DType dtype = turn % 3 ? DType::f32 : DType::bf16;
    Buffer expected = run_materialize(reference(), G, dtype), emulated(shape.out, shape.in, dtype, 5);
    emulate(turn, [&] { cuda::materialize(emulated.view(), G, kExact); });
    ASSERT_EQ(expected.bytes(), emulated.bytes());
  });
}

TEST(Ffma, UpdatesToTheBitsOfRefInEveryInstance) {
  Random random(31);
  const std::vector<Instance> all = instances();
  for_each_gradient([&](Shape shape, const Expression& G, std::size_t turn) {
    const Instance& instance = all[turn % all.size()];
    SCOPED_TRACE(::testing::Message() << instance.rule.name() << ", " << instance.storage);
    Weight expected =
        padded_weight(shape, instance.storage, instance.rule.rule(), turn / all.size() % 2 ? 3 : (4 - shape.in % 4) % 4,
                      [&] { return random.uniform(-1, 1); });
    Weight emulated = expected;
    run_update(reference(), expected, G, instance.rule);
    emulate(turn, [&] { update_exactly(emulated, G, instance.rule); });
    ASSERT_TRUE(same_bits(expected, emulated));
  });
}

TEST(Ffma, FusedEqualsTwoPhase) {
  Random random(37);
  expect_fused_equals_two_phase(ffma_specs().back(), kExact, random);
}

TEST(Ffma, ContinuesAChainInPlace) {
  Random random(41);
  constexpr Shape kShape = {131, 70};
  Gradient g(kShape, {"two products", {{TermSpec::outer, 21}, {TermSpec::outer, 30}}}, random);
  Expression whole = g.expression(), begin = whole, end = whole;
  Buffer expected = run_materialize(reference(), whole), emulated(kShape.out, kShape.in, DType::f32, 5);
  begin.terms = whole.terms.first(1);
  std::vector<Term> rest = {Dense{emulated.view()}, whole.terms[1]};
  end.terms = rest;
  emulate(2, [&] {
    cuda::materialize(emulated.view(), begin, kExact);
    cuda::materialize(emulated.view(), end, kExact);
  });
  EXPECT_EQ(expected.bytes(), emulated.bytes());
}

TEST(Ffma, SumsSquaresToTheBitsOfRef) {
  for_each_gradient([](Shape, const Expression& G, std::size_t turn) {
    std::vector<double> workspace(cuda::norm_workspace_bytes(G) / sizeof(double));
    double emulated = -1;
    emulate(turn, [&] { cuda::sum_squares(&emulated, G, std::as_writable_bytes(std::span(workspace)), kExact); });
    ASSERT_EQ(run_sum_squares(reference(), G), emulated);
  });
}

TEST(Ffma, ANormThatIsNotWantedStaysAsItIs) {
  Random random(45);
  Gradient g({20, 40}, {"tokens", {{TermSpec::outer, 4}}}, random);
  for (float skip : {1.f, 0.f}) {
    std::vector<double> workspace(20, 7);
    double sum = -1;
    emulate(3, [&] {
      cuda::sum_squares(&sum, g.expression(), std::as_writable_bytes(std::span(workspace)),
                        {.numbers = {.skip = &skip}});
    });
    EXPECT_EQ(sum == -1, skip == 1);
    EXPECT_EQ(workspace == std::vector<double>(20, 7), skip == 1);
  }
}

TEST(Ffma, TakesScaleAndConstantsFromTheDeviceAndSkipsABadStep) {
  Random random(43);
  Gradient g({20, 40}, {"tokens", {{TermSpec::outer, 4}}}, random);
  expect_numbers_from_the_device(instances()[1], g, random, update_exactly);
}

TEST(Ffma, RefusesWhatDoesNotFit) {
  Random random(47);
  constexpr Shape kShape = {4, 8};
  Gradient g(kShape, {"tokens", {{TermSpec::outer, 4}}}, random);
  Weight weight(kShape, {Format::fp32, Format::bf16}, kRuleInfo<rules::AdamW>, [] { return 0.f; });
  const RuleStep rule = step_of<rules::AdamW>({}, 1);
  EXPECT_FALSE(cuda::is_fused(rule.rule(), weight.W.view(), weight.moments()));
  EXPECT_TRUE(refuses([&] { update_exactly(weight, g.expression(), rule); }, {"no fused kernel of adamw"}));
  std::vector<Term> terms(cuda::kMostTerms + 1, g.terms().front());
  Expression many = {kShape.out, kShape.in, terms};
  Buffer D(kShape.out, kShape.in, DType::f32);
  EXPECT_TRUE(refuses([&] { cuda::materialize(D.view(), many, {}); }, {"129 terms", "materialize some"}));
  double sum = 0;
  EXPECT_TRUE(refuses([&] { cuda::sum_squares(&sum, g.expression(), {}, {}); }, {"0 bytes, 32 are needed"}));
}

}  // namespace
}  // namespace forge
