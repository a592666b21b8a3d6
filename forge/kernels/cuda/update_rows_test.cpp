#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "forge/base/testing/random.h"
#include "forge/base/testing/refusal.h"
#include "forge/kernels/cuda/testing/emulated.h"

namespace forge {
namespace {

using namespace forge::testing;

// Rules that have a kernel of rows.
std::vector<const RuleCase*> element_wise_cases() {
  std::vector<const RuleCase*> all;
  for (const RuleCase& rule : rule_cases())
    if (is_element_wise(rule.prepare(1).rule())) all.push_back(&rule);
  return all;
}

const GradientSpec kDense{"dense", {{TermSpec::dense}}, 1};

Dense only_term(const Gradient& g) { return std::get<Dense>(g.terms().front()); }

void update_emulated(Weight& weight, const Gradient& g, const RuleStep& rule, const cuda::OnDevice& numbers = {}) {
  std::vector<Stored> moments = weight.moments();
  cuda::WeightInMemory one = {weight.W.view(), moments, only_term(g), g.expression().scale};
  cuda::update_rows({&one, 1}, rule, {nullptr, numbers});
}

// Shapes: one number; less than a thread's four; ragged blocks; more than a warp's 128; whole blocks.
constexpr Shape kShapes[] = {{1, 1}, {3, 2}, {5, 33}, {2, 135}, {4, 64}, {1, 300}, {7, 20}, {2, 128}};
constexpr DType kGradientTypes[] = {DType::f32, DType::bf16, DType::f16};

// Whether a weight's columns come in fours.
constexpr std::int64_t padding_of(Shape shape, std::size_t turn) { return turn % 2 == 0 ? (4 - shape.in % 4) % 4 : 3; }

TEST(UpdateRows, HasTheBitsOfRefForEveryRuleInEveryPairOfFormats) {
  Random random(17);
  std::size_t turn = 0;
  auto cases = element_wise_cases();
  for (const RuleCase* rule : cases)
    for (Storage storage : storages()) {
      Shape shape = kShapes[turn % std::size(kShapes)];
      SCOPED_TRACE(::testing::Message() << rule->name << ", " << storage << ", (" << shape.out << ", " << shape.in
                                        << "), turn " << turn);
      GradientSpec spec = {"dense", {{TermSpec::dense, 0, turn % 5 ? 1.f : 0.7f, kGradientTypes[turn % 3]}}, 0.6f};
      Weight expected = padded_weight(shape, storage, rule->prepare(1).rule(), padding_of(shape, turn / 8),
                                      [&] { return random.uniform(-1, 1); });
      Weight emulated = expected;
      for (int step = 1; step <= 2; ++step) {
        Gradient g(shape, spec, random);
        run_update(reference(), expected, g.expression(), rule->prepare(step));
        emulate(turn, [&] { update_emulated(emulated, g, rule->prepare(step)); });
      }
      ASSERT_TRUE(same_bits(expected, emulated));
      ++turn;
    }
  EXPECT_EQ(turn, cases.size() * storages().size());
}

TEST(UpdateRows, TakesManyWeightsInOneLaunch) {
  Random random(3);
  const RuleStep rule = step_of<rules::AdamW>({}, 2);
  constexpr Storage kStorages[] = {
      {Format::fp32, Format::fp32}, {Format::bf16_stochastic, Format::int8}, {Format::bf16_plus8, Format::bf16}};
  constexpr int kWeights = cuda::kMostWeights + 3;
  std::vector<Weight> expected;
  std::vector<Gradient> gradients;
  for (int i = 0; i < kWeights; ++i) {
    Shape shape = {i % 9 == 0 ? 0 : 1 + i % 2, i % 7 == 0 ? 0 : 1 + 13 * (i % 11)};  // some are empty
    expected.emplace_back(shape, kStorages[i % 3], rule.rule(), [&] { return random.uniform(-1, 1); });
    expected.back().W.noise.parameter = static_cast<std::uint32_t>(i);
    gradients.emplace_back(shape, kDense, random);
  }
  std::vector<Weight> emulated = expected;
  std::vector<std::vector<Stored>> moments;
  std::vector<cuda::WeightInMemory> weights;
  for (std::size_t i = 0; i < emulated.size(); ++i) {
    run_update(reference(), expected[i], gradients[i].expression(), rule);
    moments.push_back(emulated[i].moments());
    weights.push_back({emulated[i].W.view(), moments.back(), only_term(gradients[i])});
  }
  emulate(1, [&] { cuda::update_rows(weights, rule, {}); });
  EXPECT_EQ(emulator::session.launches, 2);
  for (std::size_t i = 0; i < emulated.size(); ++i) EXPECT_TRUE(same_bits(expected[i], emulated[i])) << i;
}

// Contracts 5 and 6: a shard has the bits of its place in the whole weight.
void update_in_shards(Storage storage, std::int64_t row, std::int64_t col) {
  SCOPED_TRACE(::testing::Message() << storage << ", cut at (" << row << ", " << col << ")");
  constexpr Shape kShape = {5, 203};
  Random random(23);
  const RuleStep rule = step_of<rules::AdamW>({}, 3);
  Weight expected(kShape, storage, rule.rule(), [&] { return random.uniform(-1, 1); }), emulated = expected;
  Gradient g(kShape, kDense, random);
  run_update(reference(), expected, g.expression(), rule);
  ConstMatrix D = only_term(g).D;
  for (auto [from, rows] : {std::pair<std::int64_t, std::int64_t>{0, row}, {row, kShape.out - row}})
    for (auto [left, cols] : {std::pair<std::int64_t, std::int64_t>{0, col}, {col, kShape.in - col}}) {
      auto shard = [&, from = from, rows = rows, left = left, cols = cols](const Stored& m) {
        return shard_of(m, from, rows, left, cols);
      };
      std::vector<Stored> S;
      for (const Stored& s : emulated.moments()) S.push_back(shard(s));
      ConstMatrix part = {D.at(from, left), D.dtype, rows, cols, D.stride};
      cuda::WeightInMemory one = {shard(emulated.W.view()), S, Dense{part}};
      emulate(static_cast<std::uint64_t>(col), [&] { cuda::update_rows({&one, 1}, rule, {}); });
    }
  EXPECT_TRUE(same_bits(expected, emulated));
}
TEST(UpdateRows, GivesAShardTheBitsOfItsPlace) {
  for (std::int64_t col : {1, 2, 3, 4, 5, 6, 7, 8, 100})
    update_in_shards({Format::bf16_stochastic, Format::bf16_stochastic}, 2, col);
  for (std::int64_t col : {32, 96, 192}) {
    update_in_shards({Format::bf16_stochastic, Format::int8}, 3, col);
    update_in_shards({Format::bf16_plus16, Format::fp8}, 1, col);
  }
}

struct OneUpdate {
  Shape shape = {3, 70};
  RuleStep rule = step_of<rules::AdamW>({}, 1);
  Random random{5};
  Weight start = Weight(shape, {Format::fp32, Format::fp32}, rule.rule(), [&] { return random.uniform(-1, 1); });
  Gradient g = Gradient(shape, kDense, random);
};

TEST(UpdateRows, TakesScaleAndConstantsFromTheDevice) {
  OneUpdate one;
  const RuleStep later = step_of<rules::AdamW>({.lr = 0.5}, 9);
  Weight expected = one.start, emulated = one.start;
  Expression scaled = one.g.expression();
  scaled.scale = 0.125f;
  run_update(reference(), expected, scaled, later);
  const float scale = 0.125f, no_inf = 0;
  emulate(1, [&] { update_emulated(emulated, one.g, one.rule, {&scale, &no_inf, later.constants()}); });
  EXPECT_TRUE(same_bits(expected, emulated));
}

TEST(UpdateRows, ChangesNothingWhereAnInfWasFound) {
  OneUpdate one;
  Weight emulated = one.start;
  const float found = 1;
  emulate(1, [&] { update_emulated(emulated, one.g, one.rule, {nullptr, &found, nullptr}); });
  EXPECT_TRUE(same_bits(one.start, emulated));
  EXPECT_EQ(emulator::session.launches, 1);
}

TEST(UpdateRows, RefusesWhatDoesNotFit) {
  OneUpdate one;
  std::vector<Stored> moments = one.start.moments();
  cuda::WeightInMemory weight = {one.start.W.view(), moments, only_term(one.g)};
  auto refused = [&](const cuda::WeightInMemory& w, const RuleStep& rule, const char* why) {
    return refuses([&] { cuda::update_rows({&w, 1}, rule, {}); }, {why});
  };
  cuda::WeightInMemory few = weight;
  few.S = few.S.first(1);
  EXPECT_TRUE(refused(few, one.rule, "update_rows: adamw keeps 2 moments, got 1"));
  cuda::WeightInMemory other = weight;
  other.D.D.cols = 69;
  EXPECT_TRUE(refused(other, one.rule, "update_rows: Dense term is (3, 69), expected (3, 70)"));
  EXPECT_TRUE(refused(weight, step_of<rules::LambMoments>({}, 1), "has no kernel: it needs a sum over the weight"));
}

}  // namespace
}  // namespace forge
