#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "forge/base/executor.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/cuda/testing/aligned.h"
#include "forge/kernels/cuda/testing/instances.h"
#include "forge/kernels/testing/harness.h"
#include "tests/emulator/twins.h"

// Kernels on the emulated machine, beside Target::ref.
namespace forge::testing {

// Runs what f launches by the schedule of a seed and expects no deadlock and no broken rule.
template <class F>
auto emulate(std::uint64_t seed, F&& f) {
  emulator::session = {emulator::Schedule::from_seed(seed), {}, 0};
  struct Look {
    std::uint64_t seed;
    ~Look() {
      const emulator::Outcome& outcome = emulator::session.outcome;
      EXPECT_TRUE(outcome.clean()) << emulator::Schedule::from_seed(seed).describe() << "\n" << outcome.describe();
    }
  } look{seed};
  return f();
}

inline SerialExecutor& serial() {
  static SerialExecutor executor;
  return executor;
}
inline Place reference() { return {serial(), Target::ref}; }

// A weight whose rows are `padding` columns apart, those of its moments one more each: 0 in steps of 4 columns lets
// threads take four at once.
template <class Next>
Weight padded_weight(Shape shape, Storage storage, const RuleInfo& rule, std::int64_t padding, Next&& next) {
  Weight weight(shape, storage, rule, next);
  auto widened = [&](StoredBuffer& m, std::int64_t by) {
    const Matrix values = m.view().values;
    StoredBuffer to(values.rows, values.cols, m.format(), m.sign(), by);
    for (std::int64_t r = 0; r < values.rows; ++r) to.set_row(r, m.row(r));
    m = to;
  };
  widened(weight.W, padding);
  for (std::size_t k = 0; k < weight.S.size(); ++k) widened(weight.S[k], padding == 0 ? 0 : padding + 1);
  return weight;
}

// The numbers of ref, canaries too, but for the sign of zeros, which the hardware's sums do not say.
inline ::testing::AssertionResult same_values(const Buffer& a, const Buffer& b) {
  std::vector<float> x = a.numbers(), y = b.numbers();
  for (std::size_t i = 0; i < x.size(); ++i)
    if (x[i] != y[i]) return ::testing::AssertionFailure() << "element " << i << " is " << y[i] << ", not " << x[i];
  if (!b.canaries_live()) return ::testing::AssertionFailure() << "written beside the matrix";
  return ::testing::AssertionSuccess();
}

// Contract 1 in every instance, between kernels and without ref between them: update(weight, G, rule), and
// materialize(D, G) with update_rows.
template <class Random, class Update, class Materialize>
void expect_fused_equals_two_phase(const std::vector<Instance>& all, const GradientSpec& spec, Random& random,
                                   Update&& update, Materialize&& materialize) {
  constexpr Shape kShape = {140, 150};
  for (const Instance& instance : all) {
    SCOPED_TRACE(::testing::Message() << instance.rule.name() << ", " << instance.storage);
    Gradient g(kShape, spec, random);
    Weight fused(kShape, instance.storage, instance.rule.rule(), [&] { return random.uniform(-1, 1); });
    Weight two_phase = fused;
    Buffer D(kShape.out, kShape.in, DType::f32, 0);
    std::vector<Stored> moments = two_phase.moments();
    emulate(3, [&] {
      update(fused, g.expression(), instance.rule);
      materialize(D.view(), g.expression());
      cuda::WeightInMemory one = {two_phase.W.view(), moments, Dense{D.view()}};
      cuda::update_rows({&one, 1}, instance.rule, {});
    });
    ASSERT_TRUE(same_bits(fused, two_phase));
  }
}
template <class Random>
void expect_fused_equals_two_phase(const GradientSpec& spec, const cuda::Launch& launch, Random& random) {
  expect_fused_equals_two_phase(
      instances(), spec, random,
      [&](Weight& weight, const Expression& G, const RuleStep& rule) {
        cuda::update(weight.W.view(), weight.moments(), G, rule, launch);
      },
      [&](const Matrix& D, const Expression& G) { cuda::materialize(D, G, launch); });
}

// Scale, constants and noise's step that a kernel reads on the device are those of ref given them by the host; a bad
// step writes nothing. `instance` is of AdamW; update(weight, G, rule, numbers).
template <class Random, class Update>
void expect_numbers_from_the_device(const Instance& instance, const Gradient& g, Random& random, Update&& update) {
  const Shape shape = {g.expression().out, g.expression().in};
  Weight start(shape, instance.storage, instance.rule.rule(), [&] { return random.uniform(-1, 1); });
  Weight expected = start, emulated = start, skipped = start;
  const RuleStep later = step_of<rules::AdamW>({.lr = 0.5}, 9);
  const float scale = 0.125f, found = 1;
  const std::int64_t step = (std::int64_t{3} << 32) + 9;  // both of its words count
  expected.W.noise.step = step;
  Expression scaled = g.expression();
  scaled.scale = scale;
  run_update(reference(), expected, scaled, later);
  auto run = [&](Weight& weight, const cuda::OnDevice& numbers) {
    emulate(5, [&] { update(weight, g.expression(), instance.rule, numbers); });
  };
  run(emulated, {&scale, nullptr, later.constants(), &step});
  EXPECT_TRUE(same_bits(expected, emulated));
  run(skipped, {.skip = &found});
  EXPECT_TRUE(same_bits(start, skipped));
}

}  // namespace forge::testing
