// An optimizer of one's own, by name from a library that this program links (examples/rules/cwd_adamw.cpp), and by its
// options.
#include <ATen/ATen.h>

#include "forge/kernels/register_optimizer.h"
#include "forge/torch/functional.h"
#include "forge/torch/make_optimizer.h"
#include "forge/torch/testing/tensors.h"

namespace forge::testing {
namespace {

struct FlatOptions {
  static constexpr const char* kName = "Flat";
  double lr = 0.5;
  bool up = false;
  static void fields(auto& o, auto&& f) {
    f(Field{"lr", Bounds::not_negative}, o.lr);
    f(Field{"up"}, o.up);
  }
};

// w ← w ∓ lr sign(g)
struct Flat {
  using Options = FlatOptions;
  static constexpr const char* kName = "flat";
  static constexpr std::array<Moment, 0> kMoments = {};
  struct Step {
    float change;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {static_cast<float>(o.up ? o.lr : -o.lr)};
  }
  template <class V>
  FORGE_INLINE static void update(V& w, V g, V*, const Step& s) {
    w = fma(V(s.change), sign_of(g), w);
  }
};

FORGE_REGISTER_OPTIMIZER(FlatOptions, Flat);

// Three steps of a matrix through forge::linear, by gradients that do not depend on it.
void train(GroupedOptimizer& optimizer, const at::Tensor& W) {
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    forge::linear(random({4, W.size(1)}, 10 + step), W).backward(random({4, W.size(0)}, 20 + step));
    optimizer.step();
  }
}

at::Tensor trained(const std::string& name, const RuleValues& values, OptimizerOptions options = {}) {
  at::Tensor W = parameter(random({64, 65}, 1));
  std::vector<ParamGroup<RuleValues>> groups = {{.params = {W}, .options = values}};
  auto optimizer = make_optimizer(name, std::move(groups), options);
  train(*optimizer, W);
  return W.detach();
}

TEST(OwnOptimizer, IsMadeByItsNameInAnyCase) {
  at::Tensor start = random({64, 65}, 1);
  at::Tensor W = trained("CwdAdamW", {{"lr", 0.01}});
  EXPECT_FALSE(same_bits(W, start));
  EXPECT_TRUE(same_bits(trained("cwdadamw", {{"lr", 0.01}}), W));
  EXPECT_FALSE(same_bits(trained("CwdAdamW", {{"lr", 0.02}}), W));
}

TEST(OwnOptimizer, IsAdamWWithoutDecay) {
  RuleValues values = {{"lr", 0.01}, {"weight_decay", 0}};
  EXPECT_TRUE(same_bits(trained("CwdAdamW", values), trained("AdamW", values)));
}

TEST(OwnOptimizer, HasTheBitsOfStoredGradientsInEveryFormatOfMoments) {
  for (Format format : {Format::fp32, Format::bf16, Format::int8, Format::fp8}) {
    OptimizerOptions fused = {.exact = true, .state_format = format}, two_phase = fused;
    two_phase.collapse = Collapse::always;
    EXPECT_TRUE(same_bits(trained("CwdAdamW", {}, fused), trained("CwdAdamW", {}, two_phase))) << name_of(format);
  }
}

TEST(OwnOptimizer, TakesItsOptionsAsAStruct) {
  at::Tensor W = parameter(random({64, 65}, 1));
  OptimizerOf<FlatOptions> optimizer({W}, {.lr = 0.125});
  optimizer.groups()[0].options.up = true;
  train(optimizer, W);
  EXPECT_TRUE(same_bits(W.detach(), trained("flat", {{"lr", 0.125}, {"up", 1}})));
  optimizer.set_lr(0);
  at::Tensor before = W.detach().clone();
  train(optimizer, W);
  EXPECT_TRUE(same_bits(W.detach(), before));
}

TEST(OwnOptimizer, RefusesWhatIsNoOptionOfIt) {
  EXPECT_THAT([] { trained("CwdAdamW", {{"momentum", 0.9}}); }, throws("CwdAdamW has no option momentum; it has lr, "));
  EXPECT_THAT([] { trained("CwdAdamW", {{"beta1", 1.5}}); }, throws("CwdAdamW: beta1 is 1.5"));
  EXPECT_THAT([] { trained("NoneSuch", {}); }, throws("there is no optimizer NoneSuch"));
}

}  // namespace
}  // namespace forge::testing
