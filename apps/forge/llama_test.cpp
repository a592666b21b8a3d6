#include "apps/forge/llama.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "forge/base/error.h"

namespace forge::app {
namespace {

LlamaConfig small() {
  return {.vocab = 50, .hidden = 32, .intermediate = 48, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 8};
}

TEST(LlamaConfig, RefusesShapesThatContradict) {
  EXPECT_THROW(make_config({.preset = "absent"}, 100, 64), Error);
  EXPECT_THROW(make_config({.hidden = 100, .heads = 3}, 100, 64), Error);
  EXPECT_THROW(make_config({.heads = 5, .kv_heads = 2}, 100, 64), Error);
  EXPECT_THROW(make_config({.hidden = 9, .heads = 3}, 100, 64), Error);
}

TEST(LlamaConfig, RefusesSizesThatCannotBeCounted) {
  for (std::int64_t LlamaConfig::*size : {&LlamaConfig::vocab, &LlamaConfig::hidden, &LlamaConfig::layers}) {
    LlamaConfig config = small();
    config.*size = std::int64_t{1} << 40;
    EXPECT_THROW(config.validate(), Error);
  }
  EXPECT_THROW(make_config({.hidden = std::int64_t{1} << 62}, 100, 64), Error);
  EXPECT_THROW(make_config({.rope_theta = HUGE_VAL}, 100, 64), Error);
  EXPECT_THROW(make_config({.norm_eps = 1e39}, 100, 64), Error);
  LlamaConfig large = small();
  large.vocab = large.hidden = large.intermediate = large.layers = large.head_dim = (std::int64_t{1} << 31) - 1;
  EXPECT_GT(large.parameters(), 1e27);
}

TEST(LlamaConfig, PresetsAreTheSizesTheyName) {
  EXPECT_NEAR(make_config({.preset = "demo-10m"}, 4096, 256).parameters(), 10e6, 0.5e6);
  EXPECT_NEAR(make_config({.preset = "47m"}, 4096, 256).parameters(), 47e6, 0.5e6);
}

TEST(LlamaConfig, FollowsTheWidth) {
  const LlamaConfig config = make_config({.hidden = 256}, 100, 64);
  EXPECT_EQ(config.heads, 4);
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.intermediate, 704);
}

TEST(Llama, HasTheParametersOfItsShape) {
  for (const bool tied : {false, true}) {
    LlamaConfig config = small();
    config.tied = tied;
    const Llama model(config, at::kFloat, 0);
    std::int64_t count = 0;
    for (const auto& [name, tensor] : model.parameters()) count += tensor.numel();
    EXPECT_EQ(count, config.parameters());
    EXPECT_EQ(model.parameters().back().name == "lm_head.weight", !tied);
  }
}

TEST(Llama, GivesOneRowOfScoresAToken) {
  at::NoGradGuard no_grad;
  const Llama model(small(), at::kFloat, 0);
  EXPECT_EQ(model.logits(at::zeros({3, 7}, at::kLong)).sizes(), (std::vector<std::int64_t>{3, 7, 50}));
}

TEST(Llama, BeginsNearTheUniformLoss) {
  at::NoGradGuard no_grad;
  const Llama model(small(), at::kFloat, 0);
  const double loss = model.loss(at::randint(50, {2, 17}, at::kLong)).item<double>();
  EXPECT_NEAR(loss, std::log(50), 0.1);
}

TEST(Llama, DoesNotLookAhead) {
  at::NoGradGuard no_grad;
  const Llama model(small(), at::kFloat, 0);
  const at::Tensor ids = at::randint(50, {1, 8}, at::kLong);
  EXPECT_TRUE(at::allclose(model.logits(ids).narrow(1, 0, 5), model.logits(ids.narrow(1, 0, 5)), 1e-5, 1e-6));
}

TEST(Llama, OfTheSameSeedIsTheSame) {
  const Llama a(small(), at::kFloat, 3), b(small(), at::kFloat, 3), c(small(), at::kFloat, 4);
  EXPECT_TRUE(at::equal(a.parameters()[0].tensor, b.parameters()[0].tensor));
  EXPECT_FALSE(at::equal(a.parameters()[0].tensor, c.parameters()[0].tensor));
}

TEST(Llama, ComparesAConfigWithItsWeightsBeforeItMakesAModel) {
  Shapes shapes;
  const Llama source(small(), at::kFloat, 1);
  for (const auto& [name, tensor] : source.parameters()) shapes[name] = tensor.sizes().vec();
  EXPECT_NO_THROW(Llama::check_shapes(small(), shapes));
  for (std::int64_t LlamaConfig::*size : {&LlamaConfig::vocab, &LlamaConfig::layers, &LlamaConfig::intermediate}) {
    LlamaConfig config = small();
    config.*size = 1'000'000'000;
    EXPECT_THROW(Llama::check_shapes(config, shapes), Error);
  }
}

TEST(Llama, RefusesValuesThatAreNotFinite) {
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    std::map<std::string, at::Tensor> values;
    const Llama source(small(), at::kFloat, 1);
    for (const auto& [name, tensor] : source.parameters()) values[name] = tensor.detach().clone();
    values["model.layers.1.mlp.up_proj.weight"][3][4] = bad;
    Llama model(small(), at::kFloat, 0);
    EXPECT_THROW(model.load(values), Error);
  }
}

TEST(Llama, LoadsWholeModelsOnly) {
  std::map<std::string, at::Tensor> values;
  const Llama source(small(), at::kFloat, 1);
  for (const auto& [name, tensor] : source.parameters()) values[name] = tensor;
  Llama model(small(), at::kFloat, 0);
  EXPECT_NO_THROW(model.load(values));
  EXPECT_TRUE(at::equal(model.parameters()[0].tensor, values["model.embed_tokens.weight"]));

  auto more = values;
  more["score.weight"] = at::zeros({2, 2});
  EXPECT_THROW(model.load(more), Error);
  auto fewer = values;
  fewer.erase("model.norm.weight");
  EXPECT_THROW(model.load(fewer), Error);
  auto other = values;
  other["model.norm.weight"] = at::zeros({33});
  EXPECT_THROW(model.load(other), Error);
}

}  // namespace
}  // namespace forge::app
