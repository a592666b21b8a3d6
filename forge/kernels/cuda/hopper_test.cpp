#include "forge/kernels/cuda/hopper.h"

#include <gtest/gtest.h>

#include <vector>

#include "forge/base/testing/random.h"
#include "forge/base/testing/refusal.h"
#include "forge/kernels/cuda/testing/emulated.h"

namespace forge {
namespace {

using namespace forge::testing;

GradientSpec tokens(std::int64_t n, float scale = 1) {
  return {std::to_string(n) + " tokens", {{TermSpec::outer, n, 1, DType::bf16, DType::bf16}}, scale};
}

void hopper_update(Weight& weight, const Expression& G, const RuleStep& rule, const cuda::OnDevice& numbers = {}) {
  cuda::update_on_hopper(weight.W.view(), weight.moments(), Aligned(G).expression(), rule, {.numbers = numbers});
}
void hopper_materialize(const Matrix& D, const Expression& G) {
  cuda::materialize_on_hopper(D, Aligned(G).expression(), {});
}

// What goes wrong at an edge: of a warp's four columns, of eight rows, of a box, of a tile; where a block has no tile,
// one, or one more than another; where tiles are in two groups of rows.
constexpr Shape kHopperShapes[] = {{1, 1}, {7, 9}, {130, 40}, {64, 191}, {128, 128}, {260, 300}, {3, 900}, {1100, 130}};
// A token, a stage and its neighbours, fewer stages than there are and more.
constexpr std::int64_t kTokens[] = {1, 63, 64, 65, 200, 450};

// Calls f(shape, expression, turn), and makes one to four multiprocessors share the tiles.
template <class F>
void for_each_gradient_of_tokens(F&& f) {
  Random random(81);
  std::size_t turn = 0;
  for (std::int64_t n : kTokens)
    for (Shape shape : kHopperShapes) {
      if (n > 200 && shape.out > 1000) continue;  // seconds
      SCOPED_TRACE(::testing::Message() << describe(shape, tokens(n)) << ", turn " << turn);
      Gradient g(shape, tokens(n, turn % 2 ? 0.5f : -1.f), random, whole_numbers(random));
      f(shape, g.expression(), turn);
      ++turn;
    }
}
int multiprocessors(std::size_t turn) { return 1 + static_cast<int>(turn / std::size(kHopperShapes) + turn) % 4; }

TEST(Hopper, MaterializesWholeNumbersAsRef) {
  for_each_gradient_of_tokens([](Shape shape, const Expression& G, std::size_t turn) {
    DType dtype = turn % 3 ? DType::f32 : DType::bf16;
    Buffer expected = run_materialize(reference(), G, dtype), emulated(shape.out, shape.in, dtype, 5);
    emulate(turn, [&] {
      emulator::session.multiprocessors = multiprocessors(turn);
      hopper_materialize(emulated.view(), G);
    });
    ASSERT_TRUE(same_values(expected, emulated));
  });
}

TEST(Hopper, UpdatesFromWholeNumbersToTheBitsOfRefInEveryInstance) {
  Random random(83);
  const std::vector<Instance> all = instances_on_hopper();
  for_each_gradient_of_tokens([&](Shape shape, const Expression& G, std::size_t turn) {
    const Instance& instance = all[turn % all.size()];
    SCOPED_TRACE(::testing::Message() << instance.rule.name() << ", " << instance.storage);
    Weight expected = padded_weight(shape, instance.storage, instance.rule.rule(), turn % 4 == 0 ? 3 : 8 - shape.in % 8,
                                    [&] { return random.uniform(-1, 1); });
    Weight emulated = expected;
    run_update(reference(), expected, G, instance.rule);
    emulate(turn, [&] {
      emulator::session.multiprocessors = multiprocessors(turn);
      hopper_update(emulated, G, instance.rule);
    });
    ASSERT_TRUE(same_bits(expected, emulated));
  });
}

// Two groups that multiply in turn have one ring of stages: many tiles a block, few and many stages a tile.
TEST(Hopper, KeepsItsTurnsByEverySchedule) {
  Random random(87);
  const Instance instance = instances_on_hopper()[1];
  for (std::uint64_t seed = 1; seed <= 16; ++seed) {
    Gradient g({260, 300}, tokens(seed % 2 ? 40 : 300), random, whole_numbers(random));
    Weight expected =
        padded_weight({260, 300}, instance.storage, instance.rule.rule(), 4, [&] { return random.uniform(-1, 1); });
    Weight emulated = expected;
    run_update(reference(), expected, g.expression(), instance.rule);
    emulate(seed, [&] {
      emulator::session.multiprocessors = 1 + static_cast<int>(seed % 3);
      hopper_update(emulated, g.expression(), instance.rule);
    });
    ASSERT_TRUE(same_bits(expected, emulated)) << "seed " << seed;
    ASSERT_TRUE(emulator::session.outcome.notes.empty()) << emulator::session.outcome.notes.front();
  }
}

TEST(Hopper, FusedEqualsTwoPhase) {
  Random random(89);
  expect_fused_equals_two_phase(
      instances_on_hopper(), tokens(150, 0.3f), random,
      [](Weight& weight, const Expression& G, const RuleStep& rule) { hopper_update(weight, G, rule); },
      hopper_materialize);
}

// Contracts 5 and 6: noise and blocks are those of the place in the whole weight. Its columns are no multiple of 8.
TEST(Hopper, GivesAShardTheBitsOfItsPlace) {
  Random random(91);
  constexpr Shape kShape = {140, 203};
  const RuleStep rule = step_of<rules::AdamW>({}, 3);
  for (auto [state, col] : {std::pair{Format::fp32, 3}, {Format::fp32, 100}, {Format::int8, 32}}) {
    SCOPED_TRACE(::testing::Message() << "cut at column " << col);
    Weight whole(kShape, {Format::bf16_stochastic, state}, rule.rule(), [&] { return random.uniform(-1, 1); });
    Weight sharded = whole;
    Gradient g(kShape, tokens(70), random);
    emulate(static_cast<std::uint64_t>(col), [&] { hopper_update(whole, g.expression(), rule); });
    for (auto [from, rows] : {std::pair<std::int64_t, std::int64_t>{0, 9}, {9, kShape.out - 9}})
      for (auto [left, cols] : {std::pair<std::int64_t, std::int64_t>{0, col}, {col, kShape.in - col}}) {
        std::vector<std::vector<std::int64_t>> index;
        std::vector<Buffer> gathered;
        std::vector<Term> part = shard_terms(g.expression(), from, rows, left, cols, index, gathered);
        std::vector<Stored> S;
        for (const Stored& s : sharded.moments()) S.push_back(shard_of(s, from, rows, left, cols));
        Aligned aligned({rows, cols, part});
        Stored W = shard_of(sharded.W.view(), from, rows, left, cols);
        emulate(5, [&] { cuda::update_on_hopper(W, S, aligned.expression(), rule, {}); });
      }
    EXPECT_TRUE(same_bits(whole, sharded));
  }
}

TEST(Hopper, TakesScaleAndConstantsFromTheDeviceAndSkipsABadStep) {
  Random random(93);
  Gradient g({20, 40}, tokens(4), random, whole_numbers(random));
  expect_numbers_from_the_device(instances_on_hopper()[1], g, random, hopper_update);
}

TEST(Hopper, SaysWhatItCan) {
  Random random(95);
  using enum TermSpec::Kind;
  constexpr DType f32 = DType::f32, bf16 = DType::bf16, f16 = DType::f16;
  auto can = [&](const std::vector<TermSpec>& terms) {
    return cuda::can_multiply_on_hopper(Aligned(Gradient({8, 8}, {"", terms}, random).expression()).expression());
  };
  const TermSpec product = {outer, 3, 1, bf16, bf16};
  EXPECT_TRUE(can({product}));
  for (const TermSpec& other :
       {TermSpec{outer, 0, 1, bf16, bf16}, TermSpec{outer, 3, 2, bf16, bf16}, TermSpec{outer, 3},
        TermSpec{outer, 3, 1, bf16, f32}, TermSpec{outer, 3, 1, f16, f16}, TermSpec{dense}})
    EXPECT_FALSE(can({other}));
  EXPECT_FALSE(can({}));
  EXPECT_FALSE(can({product, product}));

  Gradient g({16, 24}, {"", {product}}, random);
  Aligned aligned(g.expression());
  EXPECT_FALSE(cuda::can_multiply_on_hopper(g.expression()));  // odd strides
  Outer shifted = std::get<Outer>(aligned.expression().terms[0]);
  shifted.X.data = static_cast<const std::byte*>(shifted.X.data) + 2, shifted.X.cols = 23;
  Term term = shifted;
  EXPECT_FALSE(cuda::can_multiply_on_hopper({16, 23, {&term, 1}}));

  const Expression& G = aligned.expression();
  Weight listed({16, 24}, {Format::bf16_stochastic, Format::int8}, kRuleInfo<rules::AdamW>, [] { return 0.f; });
  Weight unlisted({16, 24}, {Format::fp32, Format::fp8}, kRuleInfo<rules::AdamW>, [] { return 0.f; });
  EXPECT_TRUE(cuda::can_update_on_hopper(kRuleInfo<rules::AdamW>, listed.W.view(), listed.moments(), G));
  EXPECT_FALSE(cuda::can_update_on_hopper(kRuleInfo<rules::AdamW>, listed.W.view(), listed.moments(), g.expression()));
  EXPECT_FALSE(cuda::can_update_on_hopper(kRuleInfo<rules::AdamW>, unlisted.W.view(), unlisted.moments(), G));
  EXPECT_FALSE(cuda::can_update_on_hopper(kRuleInfo<rules::LambMoments>, listed.W.view(), listed.moments(), G));
}

TEST(Hopper, RefusesWhatDoesNotFit) {
  Random random(97);
  constexpr Shape kShape = {16, 24};
  const RuleStep rule = step_of<rules::AdamW>({}, 1);
  Gradient odd(kShape, tokens(4), random);
  Aligned aligned(odd.expression());
  const Expression& G = aligned.expression();
  Weight weight(kShape, {Format::fp32, Format::fp32}, rule.rule(), [] { return 0.f; });
  Weight unlisted(kShape, {Format::fp32, Format::fp8}, rule.rule(), [] { return 0.f; });
  Buffer D(kShape.out, kShape.in, DType::f32), small(kShape.out, 23, DType::f32);
  auto update = [&](Weight& w, const Expression& g, const cuda::Launch& launch) {
    cuda::update_on_hopper(w.W.view(), w.moments(), g, rule, launch);
  };
  EXPECT_TRUE(refuses([&] { update(weight, odd.expression(), {}); }, {"update_on_hopper", "multiples of 16 bytes"}));
  EXPECT_TRUE(refuses([&] { update(weight, G, {.stream = nullptr, .numbers = {}, .exact = true}); },
                      {"fp32 multiply-adds only"}));
  EXPECT_TRUE(refuses([&] { update(unlisted, G, {}); }, {"no kernel of adamw"}));
  EXPECT_TRUE(refuses([&] { cuda::materialize_on_hopper(small.view(), G, {}); }, {"materialize_on_hopper"}));
  emulator::session = {.schedule = {}, .outcome = {}, .capability = 100};
  EXPECT_TRUE(refuses([&] { update(weight, G, {}); }, {"compute capability 10.0, expected 9.0"}));
  EXPECT_TRUE(refuses([&] { cuda::materialize_on_hopper(D.view(), G, {}); }, {"compute capability"}));
  EXPECT_EQ(emulator::session.launches, 0);
}

TEST(Hopper, LaunchesNothingForAnEmptyWeight) {
  Random random(99);
  Gradient g({16, 24}, tokens(4), random);
  Aligned aligned(g.expression());
  Outer product = std::get<Outer>(aligned.expression().terms[0]);
  product.dY.cols = 0;
  Term term = product;
  Buffer empty(0, 24, DType::f32);
  emulate(1, [&] { cuda::materialize_on_hopper(empty.view(), {0, 24, {&term, 1}}, {}); });
  EXPECT_EQ(emulator::session.launches, 0);
}

}  // namespace
}  // namespace forge
