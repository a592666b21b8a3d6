#pragma once

#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "forge/rules/list.h"

namespace forge::testing {

template <class R>
struct Case {
  using Rule = R;
  const char* name;
  typename R::Options options;
};

// At least one for each rule of the list, with options away from their defaults.
inline const auto kCases = [] {
  using namespace rules;
  return std::tuple{
      Case<Sgd>{"sgd", {.lr = 0.1}},
      Case<Sgd>{"sgd with decay, maximized", {.lr = 0.1, .weight_decay = 0.3, .maximize = true}},
      Case<SgdMomentum>{"momentum, dampened", {.lr = 0.1, .momentum = 0.9, .dampening = 0.2, .weight_decay = 0.01}},
      Case<SgdMomentum>{"momentum, nesterov", {.lr = 0.1, .momentum = 0.9, .nesterov = true}},
      Case<Adam>{"adam with decay", {.lr = 1e-2, .weight_decay = 0.1}},
      Case<Adam>{"adam, decoupled", {.lr = 1e-2, .weight_decay = 0.1, .decoupled_weight_decay = true}},
      Case<AdamAmsgrad>{"adam, amsgrad", {.lr = 1e-2, .beta2 = 0.9, .weight_decay = 0.1, .amsgrad = true}},
      Case<AdamW>{"adamw", {.lr = 1e-2}},
      Case<AdamW>{"adamw with a small beta1, maximized",
                  {.lr = 1e-2, .beta1 = 0.4, .beta2 = 0.9, .weight_decay = 0.2, .maximize = true}},
      Case<AdamWAmsgrad>{"adamw, amsgrad", {.lr = 1e-2, .beta2 = 0.9, .amsgrad = true}},
      Case<NAdam>{"nadam", {.lr = 1e-2, .beta2 = 0.99, .weight_decay = 0.1, .momentum_decay = 0.1}},
      Case<NAdam>{"nadam, decoupled, maximized",
                  {.lr = 1e-2, .weight_decay = 0.1, .decoupled_weight_decay = true, .maximize = true}},
      Case<RAdam>{"radam, rectified from update 2", {.lr = 1e-2, .beta1 = 0.8, .beta2 = 0.8, .weight_decay = 0.1}},
      Case<RAdam>{"radam, decoupled, maximized",
                  {.lr = 1e-2, .weight_decay = 0.1, .decoupled_weight_decay = true, .maximize = true}},
      Case<Adamax>{"adamax", {.lr = 1e-2, .beta2 = 0.9, .weight_decay = 0.1, .maximize = true}},
      Case<Adagrad>{
          "adagrad",
          {.lr = 0.1, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.01, .maximize = true}},
      Case<Adadelta>{"adadelta", {.lr = 0.5, .rho = 0.8, .weight_decay = 0.1, .maximize = true}},
      Case<RMSprop>{"rmsprop", {.alpha = 0.9, .weight_decay = 0.1, .maximize = true}},
      Case<RMSpropMomentum>{"rmsprop, momentum", {.alpha = 0.9, .weight_decay = 0.1, .momentum = 0.8}},
      Case<RMSpropCentered>{"rmsprop, centered", {.alpha = 0.9, .weight_decay = 0.1, .centered = true}},
      Case<RMSpropCenteredMomentum>{"rmsprop, centered, momentum", {.alpha = 0.9, .momentum = 0.8, .centered = true}},
      Case<Rprop>{"rprop", {.lr = 0.1, .etaminus = 0.4, .etaplus = 1.3, .step_size_min = 0.02, .step_size_max = 0.2}},
      Case<Asgd>{"asgd", {.lr = 0.1, .lambd = 0.1, .alpha = 0.5, .t0 = 1, .weight_decay = 0.1, .maximize = true}},
      Case<Lion>{"lion", {.lr = 1e-2, .beta1 = 0.8, .beta2 = 0.9, .weight_decay = 0.1}},
      Case<Signum>{"signum", {.lr = 1e-2, .momentum = 0.8, .weight_decay = 0.1}},
      Case<Adan>{"adan", {.lr = 1e-2, .weight_decay = 0.1}},
      Case<Adan>{"adan, no_prox", {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.8, .weight_decay = 0.1, .no_prox = true}},
      Case<AdEMAMix>{"ademamix, warming up",
                     {.lr = 1e-2, .alpha = 5, .beta3_warmup = 100, .alpha_warmup = 6, .weight_decay = 0.1}},
      Case<Adopt>{"adopt", {.lr = 1e-2, .beta2 = 0.99, .weight_decay = 0.1, .maximize = true}},
      Case<Adopt>{"adopt, decoupled, clipped", {.lr = 1e-2, .clip_value = 0.9, .weight_decay = 0.1, .decouple = true}},
      Case<ScheduleFreeAdamW>{"schedule-free adamw",
                              {.lr = 1e-2, .weight_decay = 0.1, .warmup_steps = 3, .r = 0.5, .weight_lr_power = 1}},
      Case<ScheduleFreeAdamWInner>{"schedule-free adamw, inner momentum",
                                   {.lr = 1e-2, .beta1 = 0.8, .weight_decay = 0.1, .inner_momentum = 0.9}},
      Case<ScheduleFreeSGD>{"schedule-free sgd", {.lr = 0.1, .weight_decay = 0.1, .warmup_steps = 2}},
      Case<SophiaG>{"sophia", {.lr = 1e-2, .rho = 0.05, .bs = 20, .maximize = true}},
      Case<SophiaHessian>{"sophia's hessian", {.beta2 = 0.9}},
      Case<Mars>{"mars", {.lr = 1e-2, .weight_decay = 0.1, .gamma = 0.1}},
      Case<MarsAmsgrad>{"mars, amsgrad", {.lr = 1e-2, .beta2 = 0.9, .weight_decay = 0.1, .amsgrad = true}},
      Case<Grams>{"grams", {.lr = 1e-2, .beta2 = 0.99, .weight_decay = 0.1}},
      Case<CautiousAdamW>{"cautious adamw", {.lr = 1e-2, .beta2 = 0.99, .weight_decay = 0.1, .rescale = false}},
      Case<CautiousAdamWMask>{"cautious adamw, rescaled: its mask", {.lr = 1e-2, .beta1 = 0.4}},
      Case<StableAdamWMoments>{"stable adamw: its moments", {.lr = 1e-2, .beta1 = 0.8, .eps = 0.1}},
      Case<StableAdamW>{"stable adamw", {.lr = 1e-2, .weight_decay = 0.1, .decouple_lr = true, .max_lr = 0.1}},
      Case<LambMoments>{"lamb: its moments", {.lr = 1e-2, .beta2 = 0.99, .grad_averaging = false}},
      Case<Lamb>{"lamb", {.lr = 1e-2, .weight_decay = 0.1}},
      Case<Lamb>{"lamb, decoupled", {.lr = 1e-2, .weight_decay = 0.1, .trust_clip = true, .decoupled_decay = true}},
      Case<AdafactorSums>{"adafactor: its sums", {}},
      Case<Adafactor>{"adafactor", {.lr = 0.1, .eps1 = 1e-3, .weight_decay = 0.3}},
      Case<AdafactorVectorSums>{"adafactor, a vector: its sums", {.beta2_decay = -0.3}},
      Case<AdafactorVector>{"adafactor, a vector", {.eps1 = 0.1, .weight_decay = 0.3, .maximize = true}},
      Case<AdaLomoSums>{"adalomo: its sums", {}},
      Case<AdaLomo>{"adalomo", {.lr = 0.1, .weight_decay = 0.3}},
      Case<AdaLomoVectorSums>{"adalomo, a vector: its sums", {.eps1 = 1e-3}},
      Case<AdaLomoVector>{"adalomo, a vector", {.lr = 0.1, .clip_threshold = 0.1, .weight_decay = 0.3}},
      Case<MuonMomentum>{"muon: its momentum", {.lr = 0.1, .momentum = 0.8}},
      Case<Muon>{"muon", {.lr = 0.1, .weight_decay = 0.3}},
  };
}();

// Further options: for comparisons of the arithmetic alone, which are cheap.
inline const auto kFurtherCases = [] {
  using namespace rules;
  return std::tuple{
      Case<SgdMomentum>{"momentum, all of it dampened", {.momentum = 0.5, .dampening = 1}},
      Case<SgdMomentum>{"momentum, nesterov, decay",
                        {.lr = 0.1, .momentum = 0.95, .weight_decay = 0.3, .nesterov = true, .maximize = true}},
      Case<SgdMomentum>{"momentum, dampened, maximized",
                        {.momentum = 0.9, .dampening = 0.1, .weight_decay = 0.1, .maximize = true}},
      Case<AdamW>{"adamw, no decay", {.weight_decay = 0}},
      Case<AdamW>{"adamw, strong decay", {.weight_decay = 0.3}},
      Case<AdamW>{"adamw, large eps", {.eps = 1e-3}},
      Case<AdamW>{"adamw, beta1 one half", {.beta1 = 0.5, .beta2 = 0.9}},
      Case<AdamW>{"adamw, no memory", {.beta1 = 0, .beta2 = 0}},
      Case<AdamW>{"adamw, fine-tuning", {.lr = 2e-5, .beta2 = 0.95}},
      Case<NAdam>{"nadam, defaults", {}},
      Case<RAdam>{"radam, defaults", {}},
      Case<Adamax>{"adamax, defaults", {}},
      Case<Adagrad>{"adagrad, defaults", {}},
      Case<Adadelta>{"adadelta, defaults", {}},
      Case<RMSprop>{"rmsprop, defaults", {}},
      Case<RMSpropMomentum>{"rmsprop, momentum, large eps", {.eps = 1e-3, .momentum = 0.9, .maximize = true}},
      Case<RMSpropCentered>{"rmsprop, centered, large eps", {.eps = 1e-3, .centered = true, .maximize = true}},
      Case<Rprop>{"rprop, maximized", {.maximize = true}},
      Case<Asgd>{"asgd, defaults", {}},
      Case<Lion>{"lion, defaults", {}},
      Case<Signum>{"signum, defaults", {}},
      Case<Adan>{"adan, large eps", {.eps = 1e-3}},
      Case<AdEMAMix>{"ademamix, defaults", {}},
      Case<AdEMAMix>{"ademamix, no beta1", {.beta1 = 0, .beta3_warmup = 5, .eps = 1e-3}},
      Case<Adopt>{"adopt, large eps, no clip", {.eps = 1e-2, .clip_value = HUGE_VAL}},
      Case<ScheduleFreeAdamW>{"schedule-free adamw, defaults", {}},
      Case<ScheduleFreeSGD>{"schedule-free sgd, r", {.lr = 0.1, .momentum = 0.5, .r = 1, .weight_lr_power = 0}},
      Case<SophiaG>{"sophia, defaults", {}},
      Case<Mars>{"mars, defaults", {}},
      Case<Mars>{"mars, exact", {.gamma = 0.5, .is_approx = false}},
      Case<Grams>{"grams, bias", {.beta2 = 0.9, .eps = 1e-3, .correct_bias = false}},
      Case<CautiousAdamW>{"cautious adamw, bias", {.beta2 = 0.9, .eps = 1e-3, .correct_bias = false, .rescale = false}},
  };
}();

// The rule is one of several passes: not an update of a weight for itself.
template <class Rule>
constexpr bool is_pass() {
  return has_next_pass<Rule>() || !requires(const typename Rule::Options& o) { Rule::prepare(o, Progress{}); };
}

// Sums that a pass before the last may have come to.
inline constexpr Sums kSums = {.of_squares = {3, 7}, .out = 20, .in = 30};

// A Step that knows some sums over the rows and columns of such a weight.
template <class Rule>
typename Rule::Step with_some_lines(const typename Rule::Step& step) {
  std::vector<double> of_rows(20, 3), of_columns(30, 2);
  std::vector<float> rows(20), columns(30);
  return Rule::with_lines(Rule::for_weight(step, {}), {of_rows, of_columns}, rows, columns);
}

// The constants of a rule's pass, whichever it is.
template <class Rule>
typename Rule::Step prepare_pass(const typename Rule::Options& options, const Progress& progress) {
  std::optional<typename Rule::Step> step;
  if constexpr (has_lines<Rule>())
    step = with_some_lines<Rule>(Rule::prepare(options, progress));
  else if constexpr (requires { Rule::prepare(options, progress); })
    step = Rule::prepare(options, progress);
  else
    RuleList::for_each([&]<class R>() {
      if constexpr (has_next_pass<R>())
        if constexpr (std::is_same_v<typename R::Next, Rule>)
          step = R::next_pass(prepare_pass<R>(options, progress), kSums);
    });
  return step.value();
}

// Calls f(Case<Rule>) for each of kCases.
template <class F>
void for_each_case(F&& f) {
  std::apply([&](const auto&... c) { (f(c), ...); }, kCases);
}
// For those that are a whole update, and the further ones.
template <class F>
void for_each_arithmetic_case(F&& f) {
  for_each_case([&]<class Rule>(const Case<Rule>& c) {
    if constexpr (!is_pass<Rule>()) f(c);
  });
  std::apply([&](const auto&... c) { (f(c), ...); }, kFurtherCases);
}

}  // namespace forge::testing
