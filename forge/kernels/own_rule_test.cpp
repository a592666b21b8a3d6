// Rules of one's own: the example, which is linked with its loops for every instruction set, and one that is written
// here and so has none but ref's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/register_optimizer.h"
#include "forge/kernels/rule_library.h"
#include "forge/kernels/testing/harness.h"

namespace forge::testing {
namespace {

struct PullOptions {
  static constexpr const char* kName = "Pull";
  double lr = 0.25;
  static void fields(auto& o, auto&& f) { f(Field{"lr", Bounds::not_negative}, o.lr); }
};

// w ← w − lr (g + sum), sum ← sum + g
struct Pull {
  using Options = PullOptions;
  static constexpr const char* kName = "pull";
  static constexpr std::array kMoments = {Moment{"sum"}};
  struct Step {
    float minus_lr;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {static_cast<float>(-o.lr)};
  }
  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    w = fma(V(s.minus_lr), g + moment[0], w);
    moment[0] = moment[0] + g;
  }
};

FORGE_REGISTER_OPTIMIZER(PullOptions, Pull);

constexpr const char* kNames[] = {"CwdAdamW", "Pull"};

RuleStep prepare(const char* name, std::int64_t step) {
  const OptimizerInfo& optimizer = find_optimizer(name);
  std::vector<double> values;
  for (const OptionInfo& option : optimizer.options) values.push_back(option.initial);
  return optimizer.prepare(values, step);
}

// Three updates from the same gradients, of one weight.
template <class Next>
Weight updated(const char* name, const Place& place, Storage storage, bool fused, Next&& next) {
  constexpr Shape kShape = {13, 67};
  Weight weight(kShape, storage, prepare(name, 1).rule(), next);
  for (std::int64_t step = 1; step <= 3; ++step) {
    Random random(static_cast<std::uint64_t>(100 + step));
    Gradient gradient(kShape, {"", {{TermSpec::outer, 5, 0.6f}, {TermSpec::rows, 9}}, 0.37f}, random);
    if (fused) {
      run_update(place, weight, gradient.expression(), prepare(name, step));
      continue;
    }
    Buffer D = run_materialize(place, gradient.expression());
    Term dense = Dense{D.view()};
    run_update(place, weight, {kShape.out, kShape.in, std::span(&dense, 1)}, prepare(name, step));
  }
  return weight;
}

Weight updated(const char* name, const Place& place, Storage storage, bool fused) {
  Random random(11);
  return updated(name, place, storage, fused, [&] { return random.uniform(-1, 1); });
}

TEST(OwnRule, FusedEqualsTwoPhaseInEveryFormatOnEveryTarget) {
  for (const char* name : kNames)
    for (Storage storage : storages())
      for (Target target : available_targets()) {
        SCOPED_TRACE(::testing::Message() << name << ", " << storage << ", " << name_of(target));
        Place place = {executors()[1].executor, target};
        EXPECT_TRUE(same_bits(updated(name, place, storage, true), updated(name, place, storage, false)));
      }
}

TEST(OwnRule, HasTheSameBitsOnEveryTarget) {
  SerialExecutor serial;
  for (const char* name : kNames)
    for (Storage storage : storages())
      for (Target target : available_targets()) {
        SCOPED_TRACE(::testing::Message() << name << ", " << storage << ", " << name_of(target));
        EXPECT_TRUE(same_bits(updated(name, {serial, target}, storage, true),
                              updated(name, {serial, Target::ref}, storage, true)));
        Random a(3), b(3);
        auto wild = [](Random& random) { return [&random] { return random.wild(); }; };
        EXPECT_TRUE(same_bits(updated(name, {serial, target}, storage, true, wild(a)),
                              updated(name, {serial, Target::ref}, storage, true, wild(b))));
      }
}

TEST(OwnRule, IsItsFormula) {
  SerialExecutor serial;
  for (Target target : available_targets()) {
    Random random(5);
    Weight weight({3, 41}, {}, prepare("Pull", 1).rule(), [&] { return random.uniform(-1, 1); }), expected = weight;
    Buffer D = Buffer(3, 41, DType::f32).fill([&] { return random.uniform(-1, 1); });
    Term dense = Dense{D.view()};
    run_update({serial, target}, weight, {3, 41, std::span(&dense, 1)}, prepare("Pull", 1));
    apply<Pull>(expected, D.numbers(), {-0.25f});
    EXPECT_TRUE(same_bits(weight, expected)) << name_of(target);
  }
}

TEST(OwnRule, ThatIsCompiledForAnInstructionSetRunsInItsLoop) {
  std::set<RuleRun> loops, listed;
  for (Target target : available_targets()) {
    loops.insert(rule_loop(prepare("CwdAdamW", 1).rule(), target));
    listed.insert(rule_loop(kRuleInfo<rules::AdamW>, target));
    EXPECT_EQ(rule_loop(prepare("Pull", 1).rule(), target), (RuleLoop<Pull, Scalar>::run)) << name_of(target);
  }
  EXPECT_EQ(loops.size(), available_targets().size());
  EXPECT_EQ(listed.size(), available_targets().size());
}

struct Stranger : Pull {
  static constexpr const char* kName = "stranger";
};

TEST(OwnRule, ThatIsNotRegisteredIsRefused) {
  SerialExecutor serial;
  for (Target target : available_targets()) {
    Weight weight({2, 3}, {}, kRuleInfo<Stranger>, [] { return 1.f; }), before = weight;
    EXPECT_THAT(
        [&] {
          run_update({serial, target}, weight, {2, 3, {}}, RuleStep::of<Stranger>({-1.f}));
        },
        ::testing::ThrowsMessage<Error>(::testing::HasSubstr("rule stranger is not registered")));
    EXPECT_TRUE(same_bits(weight, before));
  }
}

// A second registration under the name of a rule changes neither the optimizer nor the loops.
TEST(OwnRule, ThatIsRefusedLeavesTheLoopsAlone) {
  RuleRun before = rule_loop(kRuleInfo<Pull>, Target::ref);
  std::vector<RuleLoops> others = {RuleLoops{RuleLoop<rules::Lion, Scalar>::run}};
  EXPECT_FALSE(register_optimizer(find_optimizer("Pull"), others));
  EXPECT_THAT(take_refusal(), ::testing::HasSubstr("an optimizer Pull already"));
  EXPECT_EQ(rule_loop(kRuleInfo<Pull>, Target::ref), before);
  // Structs as they are, loops as they once were.
  EXPECT_FALSE(register_optimizer(find_optimizer("Pull"), others, kRuleLayout));
  EXPECT_THAT(take_refusal(), ::testing::HasSubstr("another version of this library"));
  EXPECT_EQ(rule_loop(kRuleInfo<Pull>, Target::ref), before);
}

TEST(RuleLibrary, ThatCannotBeLoadedIsNamed) {
  EXPECT_THAT([] { load_rule_library("no/such/library.so"); },
              ::testing::ThrowsMessage<Error>(::testing::HasSubstr("rule library no/such/library.so: ")));
}

}  // namespace
}  // namespace forge::testing
