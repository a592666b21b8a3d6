#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

#include "forge/base/hash.h"
#include "forge/rules/adadelta.h"
#include "forge/rules/adafactor.h"
#include "forge/rules/adagrad.h"
#include "forge/rules/adalomo.h"
#include "forge/rules/adam.h"
#include "forge/rules/adamax.h"
#include "forge/rules/adan.h"
#include "forge/rules/ademamix.h"
#include "forge/rules/adopt.h"
#include "forge/rules/asgd.h"
#include "forge/rules/cautious_adamw.h"
#include "forge/rules/grams.h"
#include "forge/rules/lamb.h"
#include "forge/rules/lion.h"
#include "forge/rules/mars.h"
#include "forge/rules/muon.h"
#include "forge/rules/nadam.h"
#include "forge/rules/radam.h"
#include "forge/rules/rmsprop.h"
#include "forge/rules/rprop.h"
#include "forge/rules/rule.h"
#include "forge/rules/schedule_free.h"
#include "forge/rules/sgd.h"
#include "forge/rules/signum.h"
#include "forge/rules/sophia.h"
#include "forge/rules/stable_adamw.h"

namespace forge {

class RuleStep;

// What of a rule is known at run time.
struct RuleInfo {
  const char* name;
  std::uint32_t id;  // of the name: rules may come from several shared libraries, so no address tells them apart
  std::span<const Moment> moments;
  std::span<const char* const> scalars;
  int sums;
  bool reads_gradient, writes_weight, writes_moments;
  // 0 is the weight, 1 + k moment k.
  constexpr bool writes(int which) const { return which == 0 ? writes_weight : writes_moments; }
  Takes takes;
  NewtonSchulz (*orthogonalized)(const RuleStep& step);                      // null: w is the weight
  RuleStep (*next_pass)(const RuleStep& step, const Sums& sums);             // null: this is the last
  RuleStep (*for_weight)(const RuleStep& step, const WeightTraits& weight);  // null: it is for all
  // Null: no moment has one number for a row or a column.
  RuleStep (*with_lines)(const RuleStep& step, const LineSums& squares, std::span<float> rows,
                         std::span<float> columns);
};

template <class Rule>
constexpr std::span<const char* const> scalars_of() {
  if constexpr (requires { Rule::kScalars; })
    return Rule::kScalars;
  else
    return {};
}

template <class Rule>
constexpr bool has_next_pass() {
  return requires { typename Rule::Next; };
}
template <class Rule>
RuleStep next_pass(const RuleStep& step, const Sums& sums);
template <class Rule>
constexpr bool makes_direction() {
  return requires { Rule::orthogonalized; };
}
template <class Rule>
NewtonSchulz orthogonalized(const RuleStep& step);

template <class Rule>
constexpr bool has_vector_rule() {
  return requires { typename Rule::OfVector; };
}
template <class Rule>
RuleStep for_weight(const RuleStep& step, const WeightTraits& weight);
template <class Rule>
constexpr bool has_lines() {
  return requires { Rule::with_lines; };
}
template <class Rule>
RuleStep with_lines(const RuleStep& step, const LineSums& squares, std::span<float> rows, std::span<float> columns);
template <class Rule>
constexpr Takes takes_of() {
  if constexpr (requires { Rule::kTakes; }) return Rule::kTakes;
  return Takes::any;
}

template <class Rule>
constexpr RuleInfo rule_info() {
  using Pass = PassOf<Rule>;
  static_assert(!Pass::kWritesMoments || std::all_of(Rule::kMoments.begin(), Rule::kMoments.end(),
                                                     [](const Moment& m) { return m.extent == Extent::element; }));
  RuleInfo info = {Rule::kName,
                   fnv1a(Rule::kName),
                   Rule::kMoments,
                   scalars_of<Rule>(),
                   Pass::kSums,
                   Pass::kReadsGradient,
                   Pass::kWritesWeight,
                   Pass::kWritesMoments,
                   takes_of<Rule>(),
                   {},
                   {},
                   {},
                   {}};
  if constexpr (makes_direction<Rule>()) info.orthogonalized = orthogonalized<Rule>;
  if constexpr (has_next_pass<Rule>()) info.next_pass = next_pass<Rule>;
  if constexpr (has_vector_rule<Rule>()) info.for_weight = for_weight<Rule>;
  if constexpr (has_lines<Rule>()) info.with_lines = with_lines<Rule>;
  return info;
}
template <class Rule>
inline constexpr RuleInfo kRuleInfo = rule_info<Rule>();

// Nothing but the element's own numbers goes into its update.
constexpr bool is_element_wise(const RuleInfo& rule) {
  return rule.sums == 0 && std::all_of(rule.moments.begin(), rule.moments.end(),
                                       [](const Moment& m) { return m.extent == Extent::element; });
}

// A rule with the constants of one step.
class RuleStep {
 public:
  static constexpr std::size_t kMostBytes = 96;  // of a rule's Step

  template <class Rule>
  static RuleStep of(const typename Rule::Step& step) {
    static_assert(std::is_trivially_copyable_v<typename Rule::Step> && sizeof(step) <= sizeof(constants_));
    RuleStep r;
    r.rule_ = &kRuleInfo<Rule>;
    typename Rule::Step constants = step;
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&constants);  // or the same constants could differ in bytes that are none of them
#endif
    std::memcpy(r.constants_.data(), &constants, sizeof(constants));
    return r;
  }
  const RuleInfo& rule() const { return *rule_; }
  const char* name() const { return rule_->name; }
  int moments() const { return static_cast<int>(rule_->moments.size()); }

  // What comes behind this pass, given what it summed up; nothing behind the last.
  std::optional<RuleStep> next(const Sums& sums) const {
    return rule_->next_pass ? std::optional(rule_->next_pass(*this, sums)) : std::nullopt;
  }

  // The step of a weight that has been told apart; of a vector, another rule's.
  RuleStep for_weight(const WeightTraits& weight) const {
    return rule_->for_weight ? rule_->for_weight(*this, weight) : *this;
  }

  // The same rule with the same constants. Where padding cannot be cleared, it may say no of these, too.
  bool operator==(const RuleStep& other) const {
    return rule_->id == other.rule_->id && constants_ == other.constants_;
  }

  // The rule's Step, as memory.
  const void* constants() const { return constants_.data(); }
  // Null where it is another rule's.
  template <class Rule>
  const typename Rule::Step* get() const {
    return rule_->id == kRuleInfo<Rule>.id ? static_cast<const typename Rule::Step*>(constants()) : nullptr;
  }

 private:
  RuleStep() = default;
  const RuleInfo* rule_ = nullptr;
  alignas(8) std::array<std::byte, kMostBytes> constants_{};
};

template <class Rule>
RuleStep next_pass(const RuleStep& step, const Sums& sums) {
  using Next = typename Rule::Next;
  static_assert(Next::kMoments.size() <= Rule::kMoments.size());
  return RuleStep::of<Next>(Rule::next_pass(*step.get<Rule>(), sums));
}
template <class Rule>
NewtonSchulz orthogonalized(const RuleStep& step) {
  return Rule::orthogonalized(*step.get<Rule>());
}

template <class Rule>
RuleStep for_weight(const RuleStep& step, const WeightTraits& weight) {
  using OfVector = typename Rule::OfVector;
  if (weight.dimensions < 2) return RuleStep::of<OfVector>(Rule::for_vector(*step.get<Rule>(), weight));
  return RuleStep::of<Rule>(Rule::for_weight(*step.get<Rule>(), weight));
}
template <class Rule>
RuleStep with_lines(const RuleStep& step, const LineSums& squares, std::span<float> rows, std::span<float> columns) {
  static_assert(Rule::kMoments[0].extent == Extent::row && Rule::kMoments[1].extent == Extent::column);
  return RuleStep::of<Rule>(Rule::with_lines(*step.get<Rule>(), squares, rows, columns));
}

template <class Rule>
Progress next_progress(const typename Rule::Options& options, const Progress& progress) {
  Progress next = progress;
  if constexpr (requires { Rule::next(options, progress); }) next = Rule::next(options, progress);
  next.step = progress.step + 1;
  return next;
}

template <class Rule>
bool fits(const typename Rule::Options& options) {
  if constexpr (requires { Rule::fits(options); }) return Rule::fits(options);
  return true;
}

// An optimizer: options and the rules that they choose from, the first that fits.
template <class OptionsOf, class... Rule>
struct Optimizing {
  using Options = OptionsOf;

  // The rule and constants of the update that `progress` is at.
  static RuleStep prepare(const Options& options, const Progress& progress) {
    return visit(options, [&]<class R>() { return RuleStep::of<R>(R::prepare(options, progress)); });
  }
  static Progress next(const Options& options, const Progress& progress) {
    return visit(options, [&]<class R>() { return next_progress<R>(options, progress); });
  }
  // The rules that options choose from, and those of the passes behind them.
  template <class F>
  static constexpr void for_each_rule(F&& f) {
    (for_each_pass<Rule>(f), ...);
  }

 private:
  template <class R, class F>
  static constexpr void for_each_pass(F& f) {
    f.template operator()<R>();
    if constexpr (has_next_pass<R>())
      if constexpr (!(std::is_same_v<typename R::Next, Rule> || ...)) for_each_pass<typename R::Next>(f);
  }
  template <class F>
  static auto visit(const Options& options, F&& f) {
    return first_that_fits<F, Rule...>(options, f);
  }
  template <class F, class R, class... Rest>
  static auto first_that_fits(const Options& options, F& f) {
    if constexpr (sizeof...(Rest) > 0)
      if (!fits<R>(options)) return first_that_fits<F, Rest...>(options, f);
    return f.template operator()<R>();
  }
};

// False where the first update is told by the moments that are not there yet, as torch.optim.SGD has it.
template <class Options>
constexpr bool counts_steps() {
  if constexpr (requires { Options::kCountsSteps; }) return Options::kCountsSteps;
  return true;
}

// The one list of our optimizers and rules: the registry (registry.h), tables of kernels and tests derive from it.
template <class... O>
struct OptimizerListOf : O... {
  // Calls f.template operator()<Optimizing<…>>() for each optimizer, in order.
  template <class F>
  static constexpr void for_each_optimizer(F&& f) {
    (f.template operator()<O>(), ...);
  }
  // Calls f.template operator()<Rule>() for each rule, in order.
  template <class F>
  static constexpr void for_each(F&& f) {
    (O::for_each_rule(f), ...);
  }
};

using RuleList = OptimizerListOf<                                                                   //
    Optimizing<SgdOptions, rules::Sgd, rules::SgdMomentum>,                                         //
    Optimizing<AdamOptions, rules::Adam, rules::AdamAmsgrad>,                                       //
    Optimizing<AdamWOptions, rules::AdamW, rules::AdamWAmsgrad>,                                    //
    Optimizing<NAdamOptions, rules::NAdam>,                                                         //
    Optimizing<RAdamOptions, rules::RAdam>,                                                         //
    Optimizing<AdamaxOptions, rules::Adamax>,                                                       //
    Optimizing<AdagradOptions, rules::Adagrad>,                                                     //
    Optimizing<AdadeltaOptions, rules::Adadelta>,                                                   //
    Optimizing<RMSpropOptions, rules::RMSprop, rules::RMSpropMomentum, rules::RMSpropCentered,      //
               rules::RMSpropCenteredMomentum>,                                                     //
    Optimizing<RpropOptions, rules::Rprop>,                                                         //
    Optimizing<AsgdOptions, rules::Asgd>,                                                           //
    Optimizing<AdafactorOptions, rules::AdafactorSums, rules::AdafactorVectorSums>,                 //
    Optimizing<MuonOptions, rules::MuonMomentum>,                                                   //
    Optimizing<LionOptions, rules::Lion>,                                                           //
    Optimizing<SignumOptions, rules::Signum>,                                                       //
    Optimizing<AdanOptions, rules::Adan>,                                                           //
    Optimizing<AdEMAMixOptions, rules::AdEMAMix>,                                                   //
    Optimizing<AdoptOptions, rules::Adopt>,                                                         //
    Optimizing<ScheduleFreeAdamWOptions, rules::ScheduleFreeAdamW, rules::ScheduleFreeAdamWInner>,  //
    Optimizing<ScheduleFreeSGDOptions, rules::ScheduleFreeSGD>,                                     //
    Optimizing<SophiaGOptions, rules::SophiaG, rules::SophiaHessian>,                               //
    Optimizing<MarsOptions, rules::Mars, rules::MarsAmsgrad>,                                       //
    Optimizing<GramsOptions, rules::Grams>,                                                         //
    Optimizing<CautiousAdamWOptions, rules::CautiousAdamW, rules::CautiousAdamWMask>,               //
    Optimizing<StableAdamWOptions, rules::StableAdamWMoments>,                                      //
    Optimizing<LambOptions, rules::LambMoments>,                                                    //
    Optimizing<AdaLomoOptions, rules::AdaLomoSums, rules::AdaLomoVectorSums>>;

// The entry of the list that has these options.
template <class Options, class... Rule>
Optimizing<Options, Rule...> find_optimizing(const Optimizing<Options, Rule...>*);
template <class Options>
using OptimizingOf = decltype(find_optimizing<Options>(static_cast<const RuleList*>(nullptr)));

// The most moments a rule of the list keeps; a kernel's arrays are this long.
constexpr int kMaxMoments = [] {
  std::size_t most = 0;
  RuleList::for_each([&]<class Rule>() { most = std::max(most, Rule::kMoments.size()); });
  return static_cast<int>(most);
}();

}  // namespace forge
