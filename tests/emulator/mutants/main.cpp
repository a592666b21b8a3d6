// A short look at a part of the CUDA kernels, for mutants of it: main.cpp's program is given its name and ends with 1
// where the bits are not those of ref, 2 where the machine reports a deadlock or a broken rule, 0 where everything is
// right.
#include <cmath>
#include <cstdio>
#include <string>

#include "forge/base/testing/random.h"
#include "forge/kernels/cuda/testing/emulated.h"
#include "tests/emulator/mutants/parts.h"

namespace forge {
namespace {

using namespace forge::testing;

constexpr std::uint64_t kSeeds = 4;
const RuleStep kRule = step_of<rules::AdamW>({}, 2);

// Operands in fours and not, scaled and not; stages that end with a token tail; every kind of term between two
// products.
const GradientSpec kGradient = {"all terms",
                                {{TermSpec::dense, 0, 1.1f, DType::bf16},
                                 {TermSpec::outer, 69},
                                 {TermSpec::rows, 40, 0.7f},
                                 {TermSpec::outer, 18, 0.5f, DType::f32, DType::bf16},
                                 {TermSpec::outer, 35}},
                                0.6f};

bool tiles_are_right(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  Gradient g({134, 137}, kGradient, random);
  Weight expected = padded_weight({134, 137}, {Format::bf16_stochastic, Format::int8}, kRule.rule(), seed % 2 ? 1 : 2,
                                  [&] { return random.uniform(-1, 1); });
  Weight emulated = expected;
  run_update(reference(), expected, g.expression(), kRule);
  launch_tiles(emulated.W.view(), emulated.moments(), g.expression(), kRule);
  return static_cast<bool>(same_bits(expected, emulated));
}

// On tensor cores, from whole numbers: operands that come in 16 bytes and not, stages with a tail.
bool halves_are_right(std::uint64_t seed) {
  constexpr DType kTypes[] = {DType::bf16, DType::f16};
  Random random(static_cast<unsigned>(seed));
  GradientSpec spec = {"halves",
                       {{TermSpec::outer, 137, 1, kTypes[seed % 2], kTypes[seed % 2]},
                        {TermSpec::dense, 0, 2},
                        {TermSpec::outer, 21, 1, DType::bf16, DType::bf16}},
                       0.5f};
  Gradient g({134, 137}, spec, random, whole_numbers(random));
  Aligned aligned(g.expression());
  const Expression G = seed % 3 ? aligned.expression() : g.expression();
  Weight expected = padded_weight({134, 137}, {Format::bf16_stochastic, Format::int8}, kRule.rule(), 1,
                                  [&] { return random.uniform(-1, 1); });
  Weight emulated = expected;
  run_update(reference(), expected, G, kRule);
  launch_halves(emulated.W.view(), emulated.moments(), G, kRule);
  return static_cast<bool>(same_bits(expected, emulated));
}

// Hopper's kernel, from whole numbers: tiles of many stages and of one, more of them than blocks. Moments whose format
// wants no shuffle, which would keep the threads of a warp together.
bool hopper_is_right(std::uint64_t seed) {
  struct Case {
    Shape shape;
    std::int64_t tokens;
    unsigned blocks;
  };
  Random random(static_cast<unsigned>(seed));
  for (const Case& one : {Case{{260, 300}, 300, 2}, Case{{134, 500}, 40, 1}}) {
    GradientSpec spec = {"bf16", {{TermSpec::outer, one.tokens, 1, DType::bf16, DType::bf16}}, 0.5f};
    Gradient g(one.shape, spec, random, whole_numbers(random));
    Weight expected = padded_weight(one.shape, {Format::bf16_stochastic, Format::fp32}, kRule.rule(), 1,
                                    [&] { return random.uniform(-1, 1); });
    Weight emulated = expected;
    run_update(reference(), expected, g.expression(), kRule);
    launch_on_hopper(emulated.W.view(), emulated.moments(), Aligned(g.expression()).expression(), kRule, one.blocks);
    if (!same_bits(expected, emulated)) return false;
  }
  return true;
}

// Numbers of many magnitudes, whose sums are rounded; and products that are all -0 in places, where a chain ends as -0.
bool stored_is_right(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  Gradient g({134, 265}, kGradient, random, [&] { return std::ldexp(random.uniform(-1, 1), random.below(20)); });
  Gradient zeros({134, 137}, {"3 tokens", {{TermSpec::outer, 3}}}, random,
                 [&] { return random.below(2) ? -0.f : 1.f; });
  // One row, too: among many, the last bit of a row's sum is below that of the whole.
  Gradient row({1, 265}, kGradient, random);
  for (const Gradient* one : {&g, &row})
    if (launch_norm(one->expression()) != run_sum_squares(reference(), one->expression())) return false;
  for (const Gradient* one : {&g, &zeros}) {
    Expression G = one->expression();
    Buffer D(G.out, G.in, DType::f32, 3);
    Buffer expected = D;
    in_context(reference(), G, [&](const Context& c) { materialize(expected.view(), G, c); });
    launch_store(D.view(), G);
    if (D.bytes() != expected.bytes()) return false;
  }
  return true;
}

// Four weights in a launch, parts of larger ones, in other formats each.
bool rows_are_right(std::uint64_t seed) {
  constexpr Storage kStorages[] = {{Format::fp32, Format::fp32},
                                   {Format::bf16_stochastic, Format::int8},
                                   {Format::bf16_plus8, Format::bf16_stochastic},
                                   {Format::bf16_plus16, Format::fp8}};
  constexpr Shape kShapes[] = {{3, 131}, {2, 128}, {5, 31}, {2, 300}};
  Random random(static_cast<unsigned>(seed));
  std::vector<Weight> expected, emulated;
  std::vector<Gradient> gradients;
  for (std::size_t i = 0; i < 4; ++i) {
    Shape shape = kShapes[(i + seed) % 4];
    Weight weight = padded_weight(shape, kStorages[i], kRule.rule(), (i + seed) % 2 ? 3 : (4 - shape.in % 4) % 4,
                                  [&] { return random.uniform(-1, 1); });
    weight.W.noise.row = 3;
    weight.W.noise.col = static_cast<std::int64_t>(i % 2 ? 32 : 2 * seed + 1);
    weight.W.noise.in = 333;
    gradients.emplace_back(shape, GradientSpec{"dense", {{TermSpec::dense, 0, 0.5f, kOperandDTypes[i % 3]}}, 0.6f},
                           random);
    expected.push_back(weight);
    emulated.push_back(weight);
    run_update(reference(), expected[i], gradients[i].expression(), kRule);
  }
  std::vector<std::vector<Stored>> moments;
  std::vector<cuda::WeightInMemory> weights;
  for (std::size_t i = 0; i < 4; ++i) {
    moments.push_back(emulated[i].moments());
    weights.push_back({emulated[i].W.view(), moments[i], std::get<Dense>(gradients[i].terms().front()), 0.6f});
  }
  launch_rows(weights, kRule);
  for (std::size_t i = 0; i < 4; ++i)
    if (!same_bits(expected[i], emulated[i])) return false;
  return true;
}

// A pass with moments of rows and columns and two sums, and the sums that those are made from: several pieces of
// columns, numbers of many magnitudes.
bool sums_are_right(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  const Shape shape = {3 + static_cast<std::int64_t>(seed), seed % 2 ? 9000 : 333};
  // Without an epsilon 0 / 0 is at hand where there is no column.
  const RuleStep rule = step_of<rules::AdafactorSums>({.eps1 = 0}, 2);
  auto next = [&] { return std::ldexp(random.uniform(-1, 1), random.below(20)); };
  Weight weight(shape, {Format::bf16, Format::fp32}, rule.rule(), next);
  Gradient g(shape, {"dense", {{TermSpec::dense}}}, random, next);
  const Dense D = std::get<Dense>(g.terms().front());

  std::vector<Stored> moments = weight.moments();
  std::vector<double> of_rows(static_cast<std::size_t>(2 * shape.out));
  Sums sums = {.of_squares = {}, .out = shape.out, .in = shape.in};
  launch_pass({weight.W.view(), moments, D, 1, of_rows.data()}, rule, sums.of_squares.data());
  if (!same_sums(sums, run_update(reference(), weight, g.expression(), rule))) return false;

  Lines lines = {of_rows, std::vector<double>(static_cast<std::size_t>(shape.in))};
  lines.of_rows.resize(static_cast<std::size_t>(shape.out));
  launch_lines(lines.of_rows.data(), lines.of_columns.data(), D.D);
  const Lines expected = run_sum_squares_of_lines(reference(), g.expression());
  return lines.of_rows == expected.of_rows && lines.of_columns == expected.of_columns;
}

int look(const std::string& part) {
  auto is_right = part == "tiles"    ? tiles_are_right
                  : part == "halves" ? halves_are_right
                  : part == "hopper" ? hopper_is_right
                  : part == "stored" ? stored_is_right
                  : part == "sums"   ? sums_are_right
                                     : rows_are_right;
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    emulator::session = {emulator::Schedule::from_seed(seed), {}, 0};
    bool right = is_right(seed);
    std::printf("%s", emulator::session.outcome.describe().c_str());
    if (!right) return 1;
    if (!emulator::session.outcome.clean()) return 2;
  }
  return 0;
}

}  // namespace
}  // namespace forge

int main(int, char** arguments) { return forge::look(arguments[1]); }
