// Contract 1, fused_equals_two_phase: update(W, S, G) equals materialize(G) → fp32 D → update(W, S, Dense(D)).
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

constexpr int kSteps = 3;

// The gradients of some steps, and their D on each executor: D knows no rule, so one does for all.
struct Steps {
  std::vector<Gradient> gradients;
  std::vector<Buffer> D;

  Steps(Shape shape, const GradientSpec& spec, Random& random) {
    for (int step = 0; step < kSteps; ++step) gradients.emplace_back(shape, spec, random);
  }
  void materialize_on(const Place& place) {
    D.clear();
    for (const Gradient& g : gradients) D.push_back(run_materialize(place, g.expression()));
  }
};

void compare(const Place& place, Shape shape, const Steps& steps, const RuleCase& rule, Storage storage) {
  SCOPED_TRACE(::testing::Message() << rule.name << ", " << storage);
  Random random(11);
  Weight fused(shape, storage, rule.prepare(1).rule(), [&] { return random.uniform(-1, 1); });
  Weight two_phase = fused, start = fused;
  for (int step = 0; step < kSteps; ++step) {
    auto at = static_cast<std::size_t>(step);
    Sums a = run_update(place, fused, steps.gradients[at].expression(), rule.prepare(step + 1));
    Term dense = Dense{steps.D[at].view()};
    Sums b = run_update(place, two_phase, {shape.out, shape.in, std::span(&dense, 1)}, rule.prepare(step + 1));
    EXPECT_TRUE(same_sums(a, b));
  }
  EXPECT_TRUE(same_bits(fused, two_phase));
  const RuleInfo& info = rule.prepare(1).rule();
  bool something = outer_tokens(steps.gradients[0].expression()) > 0 && shape.out * shape.in > 16;
  EXPECT_FALSE(something && (info.writes_weight || info.writes_moments) && storage.weight == Format::fp32 &&
               same_bits(fused, start))
      << "nothing happened";
}

// Every rule in every pair of formats, in turn.
class Turns {
 public:
  template <class F>
  void take(int n, F&& f) {
    for (int i = 0; i < n; ++i, ++next_)
      f(rule_cases()[next_ % rule_cases().size()], storages()[next_ / rule_cases().size() % storages().size()]);
  }
  static int all() { return static_cast<int>(rule_cases().size() * storages().size()); }

 private:
  std::size_t next_ = 0;
};

// Calls f(place, steps) for each shape × gradient × target × threads of the lists.
template <class F>
void for_each_place(const std::vector<Shape>& all_shapes, const std::vector<GradientSpec>& specs, F&& f) {
  Random random(5);
  for (Shape shape : all_shapes)
    for (const GradientSpec& spec : specs) {
      Steps steps(shape, spec, random);
      for (Target target : available_targets())
        for (const NamedExecutor& e : executors()) {
          if (target == Target::ref && e.executor.workers() > 1) continue;  // it runs on the caller's thread
          SCOPED_TRACE(::testing::Message() << describe(shape, spec) << ", " << name_of(target) << ", " << e.name);
          Place place = {e.executor, target};
          steps.materialize_on(place);
          f(place, shape, steps);
          if (::testing::Test::HasFailure()) return;  // one case is enough to read
        }
    }
}

// Rules, formats and the chain are compiled apart. So every shape, gradient and number of threads goes with some of
// the rules and formats, each with many of them, and every rule × format × format with a few.
TEST(ContractFused, EqualsTwoPhaseForEveryShapeAndGradient) {
  constexpr int kPairsEach = 12;
  Turns turns;
  for_each_place(shapes(), gradient_specs(), [&](const Place& place, Shape shape, const Steps& steps) {
    turns.take(kPairsEach, [&](const RuleCase& rule, Storage storage) { compare(place, shape, steps, rule, storage); });
  });
}

TEST(ContractFused, EqualsTwoPhaseForEveryRuleAndFormat) {
  std::vector<GradientSpec> specs = {{"", {{TermSpec::outer, 5, 0.6f}, {TermSpec::rows, 9}}, 0.37f}};
  for_each_place({{7, 17}, {13, 33}, {2, 300}}, specs, [&](const Place& place, Shape shape, const Steps& steps) {
    Turns().take(Turns::all(),
                 [&](const RuleCase& rule, Storage storage) { compare(place, shape, steps, rule, storage); });
  });
}

TEST(ContractFused, TheTableHasEveryRule) {
  std::set<std::uint32_t> seen;
  for (const RuleCase& rule : rule_cases()) seen.insert(rule.prepare(1).rule().id);
  RuleList::for_each([&]<class Rule>() {
    EXPECT_TRUE(seen.contains(kRuleInfo<Rule>.id)) << Rule::kName << " has no row in rule_cases()";
  });
}

// T = 0 is a zero gradient and the step happens: moments decay, decoupled decay shrinks W.
TEST(ContractFused, NoTokenIsAZeroGradientAndTheStepHappens) {
  Shape shape = {13, 33};
  for (const char* name : {"no term", "no token", "no row", "minus zeros"})
    for (const GradientSpec& spec : gradient_specs()) {
      if (spec.name != name) continue;
      for (Target target : available_targets()) {
        SCOPED_TRACE(::testing::Message() << name << ", " << name_of(target));
        Random random(3);
        SerialExecutor serial;
        Gradient gradient(shape, spec, random);
        Weight weight(shape, {}, kRuleInfo<rules::AdamW>, [&] { return random.uniform(0.5, 1); });
        Weight before = weight;
        run_update({serial, target}, weight, gradient.expression(), step_of<rules::AdamW>({.weight_decay = 0.5}, 4));
        for (std::int64_t r = 0; r < shape.out; ++r)
          for (std::int64_t c = 0; c < shape.in; ++c) {
            ASSERT_EQ(weight.S[1].at(r, c), 0.999f * before.S[1].at(r, c));
            ASSERT_NEAR(weight.S[0].at(r, c), 0.9f * before.S[0].at(r, c), 1e-7);
            ASSERT_LT(weight.W.at(r, c), before.W.at(r, c));
          }
      }
    }
}

TEST(ContractFused, TermsAreOnlyRead) {
  Shape shape = {13, 33};
  for (Target target : available_targets())
    for (const GradientSpec& spec : gradient_specs()) {
      Random a(9), b(9);
      Gradient gradient(shape, spec, a), untouched(shape, spec, b);
      Weight weight(shape, {Format::bf16}, kRuleInfo<rules::AdamW>, [&] { return a.uniform(-1, 1); });
      run_update({executors()[1].executor, target}, weight, gradient.expression(), step_of<rules::AdamW>({}, 1));
      EXPECT_TRUE(same_numbers(defined_gradient(gradient.expression()), defined_gradient(untouched.expression())))
          << spec.name;
    }
}

}  // namespace
}  // namespace forge
