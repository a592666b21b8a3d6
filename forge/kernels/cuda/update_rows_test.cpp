#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "forge/base/testing/random.h"
#include "forge/base/testing/refusal.h"
#include "forge/kernels/cuda/testing/emulated.h"
#include "forge/kernels/line_sums.h"

namespace forge {
namespace {

using namespace forge::testing;

const GradientSpec kDense{"dense", {{TermSpec::dense}}, 1};

Dense only_term(const Gradient& g) { return std::get<Dense>(g.terms().front()); }

Sums update_one_weight(Weight& weight, const Gradient& g, const RuleStep& rule) {
  const Expression G = g.expression();
  const int count = rule.rule().sums;
  std::vector<Stored> moments = weight.moments();
  std::vector<double> row_sums(static_cast<std::size_t>(G.out * count), -1);  // they are overwritten
  cuda::WeightInMemory one = {weight.W.view(), moments, only_term(g), G.scale, row_sums.data()};
  cuda::update_rows({&one, 1}, rule, {});
  Sums sums = {.of_squares = {}, .out = G.out, .in = G.in};
  if (count > 0) cuda::add_row_sums(sums.of_squares.data(), row_sums.data(), G.out, count, {});
  return sums;
}

// Shapes: one number; less than a thread's four; ragged blocks; more than a warp's 128; whole blocks.
constexpr Shape kRowShapes[] = {{1, 1}, {3, 2}, {5, 33}, {2, 135}, {4, 64}, {1, 300}, {7, 20}, {2, 128}};
constexpr DType kGradientTypes[] = {DType::f32, DType::bf16, DType::f16};

// Whether a weight's columns come in fours.
constexpr std::int64_t padding_of(Shape shape, std::size_t turn) { return turn % 2 == 0 ? (4 - shape.in % 4) % 4 : 3; }

TEST(UpdateRows, HasTheBitsOfRefForEveryRuleInEveryPairOfFormats) {
  Random random(17);
  std::size_t turn = 0;
  for (const RuleCase& rule : rule_cases())
    for (Storage storage : storages()) {
      Shape shape = kRowShapes[turn % std::size(kRowShapes)];
      SCOPED_TRACE(::testing::Message() << rule.name << ", " << storage << ", (" << shape.out << ", " << shape.in
                                        << "), turn " << turn);
      GradientSpec spec = {"dense", {{TermSpec::dense, 0, turn % 5 ? 1.f : 0.7f, kGradientTypes[turn % 3]}}, 0.6f};
      Weight expected = padded_weight(shape, storage, rule.prepare(1).rule(), padding_of(shape, turn / 8),
                                      [&] { return random.uniform(-1, 1); });
      Weight emulated = expected;
      for (int step = 1; step <= 2; ++step) {
        Gradient g(shape, spec, random);
        const Sums sums = run_update(reference(), expected, g.expression(), rule.prepare(step));
        EXPECT_TRUE(same_sums(sums, emulate(turn, [&] { return update_one_weight(emulated, g, rule.prepare(step)); })));
      }
      ASSERT_TRUE(same_bits(expected, emulated));
      ++turn;
    }
  EXPECT_EQ(turn, rule_cases().size() * storages().size());
}

// Of a gradient of several slabs: sums of columns go on from one to the next.
TEST(Lines, HaveTheBitsOfRef) {
  Random random(29);
  constexpr std::int64_t kManyColumns = kLineShards * kLinePiece + 2 * kLinePiece + 77;  // shards of two pieces
  for (Shape shape :
       {Shape{1, 1}, Shape{3, 2}, Shape{9, 300}, Shape{7, 135}, Shape{3, kManyColumns}, Shape{0, 5}, Shape{6, 0}}) {
    SCOPED_TRACE(::testing::Message() << shape.out << ", " << shape.in);
    Gradient g(shape, kDense, random);
    const ConstMatrix D = only_term(g).D;
    const Lines expected = run_sum_squares_of_lines(reference(), g.expression());
    Lines found = {std::vector<double>(static_cast<std::size_t>(shape.out), -1),
                   std::vector<double>(static_cast<std::size_t>(shape.in), 0)};
    emulate(static_cast<std::uint64_t>(shape.in), [&] {
      for (std::int64_t from = 0, rows = 0; from < shape.out; from += rows) {
        rows = std::min<std::int64_t>(shape.out - from, 5);
        cuda::sum_squares_of_lines(found.of_rows.data() + from, found.of_columns.data(),
                                   {D.row(from), D.dtype, rows, D.cols, D.stride}, {});
      }
    });
    EXPECT_EQ(expected.of_rows, found.of_rows);
    EXPECT_EQ(expected.of_columns, found.of_columns);
  }
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
  Storage storage = {Format::bf16_stochastic, Format::bf16_stochastic};
  RuleStep rule = step_of<rules::AdamW>({}, 1);
  Random random{5};
  Weight start = Weight(shape, storage, rule.rule(), [&] { return random.uniform(-1, 1); });
  Gradient g = Gradient(shape, kDense, random);
};

TEST(UpdateRows, TakesNumbersFromTheDevice) {
  OneUpdate one;
  expect_numbers_from_the_device(
      {one.rule, one.storage}, one.g, one.random,
      [](Weight& weight, const Expression& G, const RuleStep& rule, const cuda::OnDevice& numbers) {
        std::vector<Stored> moments = weight.moments();
        cuda::WeightInMemory w = {weight.W.view(), moments, std::get<Dense>(G.terms[0]), G.scale};
        cuda::update_rows({&w, 1}, rule, {nullptr, numbers});
      });
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
  EXPECT_TRUE(refused(weight, step_of<rules::LambMoments>({}, 1), "lamb_moments sums, and a weight has no row_sums"));
}

}  // namespace
}  // namespace forge
