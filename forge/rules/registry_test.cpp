#include "forge/rules/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace forge {
namespace {

using ::testing::HasSubstr;

struct DriftOptions {
  static constexpr const char* kName = "Drift";
  double lr = 0.5;
  double low = 0.25, high = 0.75;
  int every = 3;
  bool up = true;

  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"low", Bounds::none, "range", 0}, o.low);
    f(Field{"high", Bounds::none, "range", 1}, o.high);
    f(Field{"every"}, o.every);
    f(Field{"up"}, o.up);
  }
};

struct Drift {
  using Options = DriftOptions;
  static constexpr const char* kName = "drift";
  static constexpr std::array<Moment, 0> kMoments = {};
  static constexpr std::array kScalars = {"last_lr"};
  struct Step {
    float shift;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {static_cast<float>((o.up ? 1 : -1) * o.lr * o.high * o.every)};
  }
  static Progress next(const Options& o, const Progress& p) {
    Progress next = p;
    next.scalars[0] = o.lr;
    return next;
  }
};

const OptimizerInfo& drift() { return optimizer_info<Optimizing<DriftOptions, Drift>>(); }

std::string refusal_of(const OptimizerInfo& optimizer) {
  EXPECT_FALSE(add_optimizer(optimizer));
  return take_refusal();
}

TEST(Registry, HasTheListInItsOrderAndNamesInAnyCase) {
  std::vector<const OptimizerInfo*> all = optimizers();
  std::size_t next = 0;
  RuleList::for_each_optimizer([&]<class O>() {
    EXPECT_STREQ(all[next++]->name, O::Options::kName);
    EXPECT_EQ(find_optimizer(O::Options::kName).name, all[next - 1]->name);
  });
  EXPECT_STREQ(find_optimizer("aDaMw").name, "AdamW");
  EXPECT_EQ(optimizer_names()[2], "adamw");
  try {
    find_optimizer("Adamant");
    ADD_FAILURE() << "found";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("there is no optimizer Adamant; there are sgd, adam, adamw, "));
  }
}

TEST(Registry, KnowsNamesAndRulesOnce) {
  std::set<std::string> names;
  std::set<std::uint32_t> rules;
  for (const std::string& name : optimizer_names()) EXPECT_TRUE(names.insert(name).second) << name;
  for (const OptimizerInfo* optimizer : optimizers())
    for (const RuleInfo* rule : optimizer->rules) EXPECT_TRUE(rules.insert(rule->id).second) << rule->name;
}

TEST(Registry, GivesOptionsWithKindAndDefault) {
  std::span<const OptionInfo> options = drift().options;
  ASSERT_EQ(options.size(), 5u);
  EXPECT_STREQ(options[2].field.name, "high");
  EXPECT_STREQ(options[2].field.tuple, "range");
  EXPECT_EQ(options[2].field.place, 1);
  EXPECT_EQ(options[2].initial, 0.75);
  EXPECT_EQ(options[2].kind, OptionKind::number);
  EXPECT_EQ(options[3].kind, OptionKind::count);
  EXPECT_EQ(options[4].kind, OptionKind::flag);
  EXPECT_EQ(options[4].initial, 1);
}

TEST(Registry, PreparesFromValuesInTheOrderOfTheOptions) {
  EXPECT_EQ(drift().prepare(values_of(DriftOptions{}), {}).get<Drift>()->shift, 0.5f * 0.75f * 3);
  std::vector<double> values = {2, 0, 4, 5, 0};
  EXPECT_EQ(drift().prepare(values, {}).get<Drift>()->shift, -40);
  Progress next = drift().next(values, 7);
  EXPECT_EQ(next.step, 8);
  EXPECT_EQ(next.scalars[0], 2);
  EXPECT_STREQ(drift().rules[0]->name, "drift");
}

TEST(Registry, RefusesValuesThatAreNotTheOptions) {
  const OptimizerInfo& adamw = find_optimizer("AdamW");
  std::vector<double> values = values_of(AdamWOptions{});
  values[1] = 1;
  EXPECT_THAT([&] { adamw.prepare(values, {}); }, ::testing::ThrowsMessage<Error>(HasSubstr("AdamW: beta1 is 1")));
  values.pop_back();
  EXPECT_THAT([&] { adamw.prepare(values, {}); }, ::testing::ThrowsMessage<Error>(HasSubstr("7 options, got 6")));
}

TEST(Registry, TakesAnOptimizerOnce) {
  ASSERT_TRUE(add_optimizer(drift()));
  EXPECT_EQ(&find_optimizer("drift"), &drift());
  EXPECT_EQ(optimizers().back(), &drift());
  EXPECT_THAT(refusal_of(drift()), HasSubstr("there is an optimizer Drift already"));
  OptimizerInfo renamed = drift();
  renamed.name = "Drifting";
  EXPECT_THAT(refusal_of(renamed), HasSubstr("has a rule drift, and there is a rule drift already"));
  EXPECT_EQ(optimizers().back(), &drift());
}

TEST(Registry, RefusesANameOfTheListInAnyCase) {
  OptimizerInfo lion = drift();
  lion.name = "LION";
  EXPECT_THAT(refusal_of(lion), HasSubstr("there is an optimizer LION already"));
}

TEST(Registry, RefusesARuleOfAnotherLayout) {
  EXPECT_FALSE(add_optimizer(drift(), kRuleLayout + 1));
  EXPECT_THAT(take_refusal(), HasSubstr("compile it again"));
}

TEST(Registry, RepeatsARefusalUntilItIsTaken) {
  ASSERT_FALSE(add_optimizer(find_optimizer("Adam")));
  EXPECT_THAT([] { find_optimizer("Adam"); }, ::testing::ThrowsMessage<Error>(HasSubstr("an optimizer Adam already")));
  EXPECT_THAT([] { optimizers(); }, ::testing::ThrowsMessage<Error>(HasSubstr("an optimizer Adam already")));
  EXPECT_NE(take_refusal(), "");
  EXPECT_EQ(take_refusal(), "");
  EXPECT_NO_THROW(find_optimizer("Adam"));
}

}  // namespace
}  // namespace forge
