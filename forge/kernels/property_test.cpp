// Any weight, any terms, any scales: the fastest target equals the definition.
#include <gtest/gtest.h>

#include <array>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/property.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

DType any_operand() { return *rc::gen::elementOf(std::to_array(kOperandDTypes)); }
Storage any_storage() { return *rc::gen::elementOf(storages()); }
float any_scale() { return *rc::gen::element(1.f, -1.f, 0.5f, 0.37f, -2.6f, 0.f, 1e-20f); }

struct Problem {
  Shape shape;
  GradientSpec spec;
  std::uint64_t seed;
};

Problem any_problem() {
  Problem p;
  p.shape = {*rc::gen::inRange<std::int64_t>(0, 40), *rc::gen::inRange<std::int64_t>(0, 300)};
  auto terms = *rc::gen::inRange(0, 6);
  for (int i = 0; i < terms; ++i)
    p.spec.terms.push_back(
        {.kind = *rc::gen::element(TermSpec::outer, TermSpec::outer, TermSpec::rows, TermSpec::dense),
         .tokens = *rc::gen::inRange<std::int64_t>(0, 30),
         .scale = any_scale(),
         .first = any_operand(),
         .second = any_operand()});
  p.spec.scale = any_scale();
  p.seed = *rc::gen::arbitrary<std::uint64_t>();
  return p;
}

TEST(Property, UpdateOnTheBestTargetEqualsTheDefinition) {
  EXPECT_TRUE(holds(400, [] {
    Problem p = any_problem();
    Random random(p.seed);
    Gradient gradient(p.shape, p.spec, random);
    const RuleCase& rule = *rc::gen::elementOf(rule_cases());
    const NamedExecutor& e = executors()[*rc::gen::inRange<std::size_t>(0, executors().size())];
    RuleStep step = rule.prepare(*rc::gen::inRange<std::int64_t>(1, 1000));
    Weight best(p.shape, any_storage(), step.rule(), [&] { return random.uniform(-1, 1); });
    Weight ref = best, defined = best;
    run_update({e.executor, best_target()}, best, gradient.expression(), step);
    run_update({e.executor, Target::ref}, ref, gradient.expression(), step);
    apply(defined, defined_gradient(gradient.expression()), step);
    RC_ASSERT(bool(same_bits(best, ref)));
    RC_ASSERT(bool(same_bits(best, defined)));
  }));
}

TEST(Property, MaterializeAndNormOnTheBestTargetEqualTheDefinition) {
  EXPECT_TRUE(holds(200, [] {
    Problem p = any_problem();
    Random random(p.seed);
    Gradient gradient(p.shape, p.spec, random, [&] { return random.wild(); });
    const NamedExecutor& e = executors()[*rc::gen::inRange<std::size_t>(0, executors().size())];
    Place best = {e.executor, best_target()}, ref = {e.executor, Target::ref};
    RC_ASSERT(bool(same_numbers(run_materialize(best, gradient.expression()).numbers(),
                                run_materialize(ref, gradient.expression()).numbers())));
    RC_ASSERT(same_number(run_sum_squares(best, gradient.expression()), run_sum_squares(ref, gradient.expression())));
  }));
}

}  // namespace
}  // namespace forge
