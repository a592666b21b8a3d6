#include "forge/torch/make_optimizer.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "forge/base/error.h"
#include "forge/rules/registry.h"

namespace forge {
namespace {

// Where an option stands among those of the optimizer.
std::size_t place_of(const OptimizerInfo& optimizer, std::string_view name) {
  std::string known;
  for (std::size_t i = 0; i < optimizer.options.size(); ++i) {
    if (optimizer.options[i].field.name == name) return i;
    known += std::string(known.empty() ? "" : ", ") + optimizer.options[i].field.name;
  }
  fail(optimizer.name, " has no option ", name, "; it has ", known);
}

// What is not given has its default.
std::vector<double> in_order(const OptimizerInfo& optimizer, const RuleValues& given) {
  std::vector<double> values;
  for (const OptionInfo& option : optimizer.options) values.push_back(option.initial);
  for (const auto& [name, value] : given) values[place_of(optimizer, name)] = value;
  return values;
}

// The optimizer of a program that knows its rule by name only.
class NamedOptimizer final : public GroupedOptimizer {
 public:
  NamedOptimizer(const OptimizerInfo& rule, std::vector<ParamGroup<RuleValues>> groups, OptimizerOptions options)
      : GroupedOptimizer(rule, std::move(options)), lr_(place_of(rule, "lr")) {
    for (const auto& group : groups) {
      values_.push_back(in_order(rule, group.options));
      hold_group(group.params, values_.size() - 1, group.state_format);
    }
    check_held();
  }

  void set_lr(double lr) override {
    for (auto& values : values_) values[lr_] = lr;
  }

 private:
  std::vector<double> values(std::size_t group) const override { return values_[group]; }

  std::size_t lr_;
  std::vector<std::vector<double>> values_;  // by group
};

}  // namespace

std::unique_ptr<GroupedOptimizer> make_optimizer(const std::string& name, std::vector<ParamGroup<RuleValues>> groups,
                                                 OptimizerOptions options) {
  return std::make_unique<NamedOptimizer>(find_optimizer(name), std::move(groups), std::move(options));
}

RuleStep prepare_rule(const std::string& name, const RuleValues& values, const Progress& progress) {
  const OptimizerInfo& optimizer = find_optimizer(name);
  return optimizer.prepare(in_order(optimizer, values), progress);
}

Progress next_progress(const std::string& name, const RuleValues& values, const Progress& progress) {
  const OptimizerInfo& optimizer = find_optimizer(name);
  return optimizer.next(in_order(optimizer, values), progress);
}

}  // namespace forge
