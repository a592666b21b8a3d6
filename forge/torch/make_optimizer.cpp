#include "forge/torch/make_optimizer.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <type_traits>
#include <utility>

#include "forge/base/error.h"

namespace forge {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

// Calls f.template operator()<Options>() for the optimizer of this name.
template <class F>
void with_optimizer(const std::string& name, F&& f) {
  bool found = false;
  RuleList::for_each_optimizer([&]<class O>() {
    if (lower(O::Options::kName) != lower(name)) return;
    found = true;
    f.template operator()<typename O::Options>();
  });
  check(found, "there is no optimizer ", name, "; there are ", joined(optimizer_names()));
}

template <class Options>
std::vector<RuleOption> options_of() {
  std::vector<RuleOption> all;
  Options defaults;
  Options::fields(defaults, [&](const Field& field, auto& value) {
    all.push_back({field.name, static_cast<double>(value), std::is_same_v<std::remove_cvref_t<decltype(value)>, bool>});
  });
  return all;
}

template <class Options>
Options options_from(const RuleValues& values) {
  Options options;
  std::size_t used = 0;
  Options::fields(options, [&](const Field& field, auto& value) {
    auto given = values.find(field.name);
    if (given == values.end()) return;
    value = static_cast<std::remove_cvref_t<decltype(value)>>(given->second);
    ++used;
  });
  if (used == values.size()) return options;
  std::vector<std::string> known;
  for (const RuleOption& option : options_of<Options>()) known.push_back(option.name);
  for (const auto& [name, value] : values)
    check(std::ranges::find(known, name) != known.end(), Options::kName, " has no option ", name, "; it has ",
          joined(known));
  return options;
}

}  // namespace

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  RuleList::for_each_optimizer([&]<class O>() { names.push_back(lower(O::Options::kName)); });
  return names;
}

std::vector<RuleOption> options_of_optimizer(const std::string& name) {
  std::vector<RuleOption> all;
  with_optimizer(name, [&]<class Options>() { all = options_of<Options>(); });
  return all;
}

std::unique_ptr<GroupedOptimizer> make_optimizer(const std::string& name, std::vector<ParamGroup<RuleValues>> groups,
                                                 OptimizerOptions options) {
  std::unique_ptr<GroupedOptimizer> made;
  with_optimizer(name, [&]<class Options>() {
    std::vector<ParamGroup<Options>> typed;
    for (auto& group : groups)
      typed.push_back({.params = std::move(group.params),
                       .options = options_from<Options>(group.options),
                       .state_format = group.state_format});
    made = std::make_unique<OptimizerOf<Options>>(std::move(typed), std::move(options));
  });
  return made;
}

RuleStep prepare_rule(const std::string& name, const RuleValues& values, const Progress& progress) {
  std::optional<RuleStep> step;
  with_optimizer(
      name, [&]<class Options>() { step = OptimizingOf<Options>::prepare(options_from<Options>(values), progress); });
  return *step;
}

Progress next_progress(const std::string& name, const RuleValues& values, const Progress& progress) {
  Progress next;
  with_optimizer(name,
                 [&]<class Options>() { next = OptimizingOf<Options>::next(options_from<Options>(values), progress); });
  return next;
}

}  // namespace forge
