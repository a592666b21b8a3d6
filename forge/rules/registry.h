#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "forge/base/error.h"
#include "forge/rules/list.h"
#include "forge/rules/rule.h"

// The optimizers that there are at run time: those of RuleList, then those that users have registered
// (kernels/register_optimizer.h). Everything that goes by a name or by a list of options looks here.
namespace forge {

enum class OptionKind : std::uint8_t { number, count, flag };

struct OptionInfo {
  Field field;
  OptionKind kind;
  double initial;
};

// What of an optimizer is known at run time. Values of its options are doubles in the order of `options`, flags 0 or 1.
struct OptimizerInfo {
  const char* name;
  std::span<const OptionInfo> options;
  std::span<const RuleInfo* const> rules;  // that the options choose from, and of the passes behind them
  bool counts_steps;                       // as counts_steps<Options>() has it
  // The rule and constants of the update that `progress` is at, and where the one after it stands. Throw Error where a
  // value is out of range.
  RuleStep (*prepare)(std::span<const double> values, const Progress& progress);
  Progress (*next)(std::span<const double> values, const Progress& progress);
};

template <class T>
constexpr OptionKind kind_of() {
  if (std::is_same_v<T, bool>) return OptionKind::flag;
  return std::is_integral_v<T> ? OptionKind::count : OptionKind::number;
}

template <class Options>
std::vector<OptionInfo> options_of() {
  std::vector<OptionInfo> all;
  const Options defaults;
  Options::fields(defaults, [&]<class T>(const Field& field, const T& value) {
    all.push_back({field, kind_of<T>(), static_cast<double>(value)});
  });
  return all;
}

template <class Options>
std::vector<double> values_of(const Options& options) {
  std::vector<double> values;
  Options::fields(options, [&](const Field&, const auto& value) { values.push_back(static_cast<double>(value)); });
  return values;
}

template <class Options>
Options options_from(std::span<const double> values) {
  Options options;
  std::size_t used = 0;
  Options::fields(options, [&]<class T>(const Field&, T& value) {
    if (used < values.size()) value = static_cast<T>(values[used]);
    ++used;
  });
  check(used == values.size(), Options::kName, " has ", used, " options, got ", values.size(), " values");
  return options;
}

template <class O>
std::vector<const RuleInfo*> rules_of() {
  std::vector<const RuleInfo*> all;
  O::for_each_rule([&]<class Rule>() { all.push_back(&kRuleInfo<Rule>); });
  return all;
}

// Of O = Optimizing<Options, Rule...>; lives as long as the library that asks.
template <class O>
const OptimizerInfo& optimizer_info() {
  using Options = typename O::Options;
  static const std::vector<OptionInfo> options = options_of<Options>();
  static const std::vector<const RuleInfo*> rules = rules_of<O>();
  static const OptimizerInfo info = {
      Options::kName,
      options,
      rules,
      counts_steps<Options>(),
      [](std::span<const double> values, const Progress& p) { return O::prepare(options_from<Options>(values), p); },
      [](std::span<const double> values, const Progress& p) { return O::next(options_from<Options>(values), p); }};
  return info;
}

// What a rule that is compiled apart has to have in common with this library: the layout of what they share.
constexpr std::uint32_t kRuleLayout = [] {
  std::size_t layout = 0;
  for (std::size_t size : {sizeof(RuleInfo), sizeof(RuleStep), sizeof(Progress), sizeof(OptionInfo),
                           sizeof(OptimizerInfo), std::size_t{kMaxMoments}, std::size_t{kMaxSums}})
    layout = layout * 131 + size;
  return static_cast<std::uint32_t>(layout);
}();

// Adds an optimizer, which has to live on; for what runs before main(), so nothing is thrown. False where its name or
// that of one of its rules is taken, in any case of letters, or `layout` is another: then all the functions below throw
// Error with the reason, until it is taken.
bool add_optimizer(const OptimizerInfo& optimizer, std::uint32_t layout = kRuleLayout) noexcept;
// Why the last optimizer was refused, once; "" where none was.
std::string take_refusal();

// In the order of RuleList, then as they came.
std::vector<const OptimizerInfo*> optimizers();
// By its name, in any case: "AdamW", "adamw". Throws Error with the names that there are.
const OptimizerInfo& find_optimizer(std::string_view name);
// As they are written on a command line: "sgd", "adam", …
std::vector<std::string> optimizer_names();

}  // namespace forge
