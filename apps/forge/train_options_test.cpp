#include "apps/forge/train_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "apps/forge/cli.h"
#include "apps/forge/test_folder.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

TrainOptions parse_flags(std::vector<std::string> flags) {
  std::vector<const char*> arguments = {"train", "--data", "text", "--out", "model"};
  for (const std::string& flag : flags) arguments.push_back(flag.c_str());
  TrainOptions options;
  CLI::App app("", "forge train");
  prepare(app);
  add_train_options(app, options);
  parse(app, static_cast<int>(arguments.size()), arguments.data());
  settle(app, options);
  return options;
}

std::string refusal(const std::vector<std::string>& flags) {
  try {
    parse_flags(flags);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(TrainOptions, HaveDefaults) {
  const TrainOptions options = parse_flags({});
  EXPECT_EQ(options.trainer.rule, "adamw");
  EXPECT_EQ(options.trainer.clip, 1);
  EXPECT_EQ(options.trainer.values.at("weight_decay"), 0.1);
  EXPECT_EQ(options.trainer.values.at("beta2"), 0.95);
  EXPECT_EQ(options.trainer.optimizer.collapse, Collapse::automatic);
  EXPECT_FALSE(options.trainer.optimizer.count_rounding);
  EXPECT_DOUBLE_EQ(options.learning_rate().floor, options.lr / 10);
}

TEST(TrainOptions, ReachTheTrainer) {
  const TrainOptions options = parse_flags({"--optimizer", "sgd", "--momentum", "0.9", "--nesterov", "--weights",
                                            "bf16", "--state", "bf16", "--exact", "--no-fuse", "--clip", "0.5",
                                            "--accumulation", "3", "--min-lr", "1e-3", "--count-rounding"});
  EXPECT_EQ(options.trainer.rule, "sgd");
  EXPECT_EQ(options.trainer.values, (RuleValues{{"momentum", 0.9}, {"nesterov", 1}}));
  EXPECT_EQ(options.dtype(), at::kBFloat16);
  EXPECT_EQ(options.trainer.optimizer.state_format, Format::bf16);
  EXPECT_TRUE(options.trainer.optimizer.exact);
  EXPECT_TRUE(options.trainer.optimizer.count_rounding);
  EXPECT_EQ(options.trainer.optimizer.collapse, Collapse::always);
  EXPECT_EQ(options.trainer.clip, 0.5);
  EXPECT_EQ(options.trainer.accumulation, 3);
}

TEST(TrainOptions, DoNotClipInBackwardUnlessAsked) {
  EXPECT_EQ(parse_flags({"--schedule", "in_backward"}).trainer.clip, 0);
  EXPECT_THAT(refusal({"--schedule", "in_backward", "--clip", "1"}), testing::HasSubstr("--schedule at_step"));
}

TEST(TrainOptions, ComeFromAFileUnderTheCommandLine) {
  const TestFolder folder;
  const auto file = folder.write("run.toml", "steps = 7\nbatch = 3\noptimizer = \"sgd\"\nexact = true\n");
  const TrainOptions options = parse_flags({"--config", file.string(), "--batch", "5"});
  EXPECT_EQ(options.steps, 7);
  EXPECT_EQ(options.batch, 5);
  EXPECT_EQ(options.trainer.rule, "sgd");
  EXPECT_TRUE(options.trainer.optimizer.exact);
  const auto wrong = folder.write("wrong.toml", "stepz = 7\n");
  EXPECT_THAT(refusal({"--config", wrong.string()}), testing::HasSubstr("did you mean --steps"));
}

TEST(TrainOptions, RefuseWhatIsUnknownOrContradicts) {
  struct Case {
    std::vector<std::string> flags;
    const char* says;
  };
  const Case cases[] = {
      {{"--batchs", "2"}, "did you mean --batch?"},
      {{"--accum", "2"}, "did you mean --accumulation?"},
      {{"--optimizer", "adan2"}, "adamw"},
      {{"--optimizer", "sophiag"}, "sgd"},
      {{"--optimizer", "muon"}, "lamb"},
      {{"--weights", "int8"}, "bf16_stochastic"},
      {{"--state", "bf16_plus8"}, "int8"},
      {{"--steps", "0"}, "--steps"},
      {{"--steps", "many"}, "--steps"},
      {{"--lr", "-1"}, "--lr"},
      {{"--momentum", "0.9"}, "sgd"},
      {{"--optimizer", "sgd", "--beta1", "0.8"}, "adamw"},
      {{"--init", "dir", "--hidden", "64"}, "--init"},
      {{"--schedule", "in_backward", "--accumulation", "2"}, "--accumulation 1"},
      {{"--schedule", "in_backward", "--no-fuse"}, "one of the two"},
      {{"--warmup", "5000"}, "--warmup"},
      {{"--min-lr", "1"}, "--min-lr"},
      {{"--config", "absent.toml"}, "absent.toml"},
  };
  for (const Case& c : cases) EXPECT_THAT(refusal(c.flags), testing::HasSubstr(c.says)) << c.flags[0];
}

TEST(TrainOptions, AreNumbersThatCanBeMeant) {
  const char* const wrong[][2] = {{"--seed", "-1"},
                                  {"--seed", "18446744073709551616"},
                                  {"--seed", " -3"},
                                  {"--steps", "9223372036854775808"},
                                  {"--max-bytes", "99999999999999999999"},
                                  {"--vocab-size", "0x8000000000000000"},
                                  {"--lr", "inf"},
                                  {"--lr", "1e400"},
                                  {"--min-lr", "nan"},
                                  {"--clip", "1e39"},
                                  {"--temperature", "infinity"},
                                  {"--rope-theta", "INF"},
                                  {"--norm-eps", "inf"},
                                  {"--beta1", "nan"},
                                  {"--weight-decay", "-inf"},
                                  {"--threads", "100000"},
                                  {"--threads", "4294967297"}};
  for (const auto& [flag, value] : wrong) EXPECT_THAT(refusal({flag, value}), testing::HasSubstr(flag)) << value;
  EXPECT_EQ(parse_flags({"--seed", "18446744073709551615"}).seed, std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(parse_flags({"--lr", "3e38", "--min-lr", "1e-60"}).lr, 3e38);
  const TestFolder folder;
  const auto file = folder.write("run.toml", "weight-decay = inf\n");
  EXPECT_THAT(refusal({"--config", file.string()}), testing::HasSubstr("--weight-decay"));
}

TEST(Nearest, NamesOnlyWhatIsNear) {
  EXPECT_EQ(nearest("--sed", {"--seed", "--seq"}), "--seed");
  EXPECT_EQ(nearest("--zzzzzzz", {"--seed", "--seq"}), "");
}

}  // namespace
}  // namespace forge::app
