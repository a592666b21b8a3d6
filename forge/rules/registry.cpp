#include "forge/rules/registry.h"

#include <algorithm>
#include <cctype>
#include <mutex>
#include <utility>

namespace forge {
namespace {

std::string lower(std::string_view text) {
  std::string all(text);
  std::ranges::transform(all, all.begin(), [](unsigned char c) { return std::tolower(c); });
  return all;
}

struct Registry {
  std::mutex mutex;
  std::vector<const OptimizerInfo*> optimizers;
  std::string refusal;

  Registry() {
    RuleList::for_each_optimizer([&]<class O>() { optimizers.push_back(&optimizer_info<O>()); });
  }
  const OptimizerInfo* find(std::string_view name) const {
    for (const OptimizerInfo* optimizer : optimizers)
      if (lower(optimizer->name) == lower(name)) return optimizer;
    return nullptr;
  }
  const RuleInfo* find_rule(std::uint32_t id) const {
    for (const OptimizerInfo* optimizer : optimizers)
      for (const RuleInfo* rule : optimizer->rules)
        if (rule->id == id) return rule;
    return nullptr;
  }
  // Why it cannot be added; "" where it can.
  std::string objection(const OptimizerInfo& optimizer) const {
    std::string name = optimizer.name;
    if (find(name)) return "there is an optimizer " + name + " already; give Options::kName another value";
    for (const RuleInfo* rule : optimizer.rules) {
      if (const RuleInfo* taken = find_rule(rule->id))
        return "the optimizer " + name + " has a rule " + rule->name + ", and there is a rule " + taken->name +
               " already; give the rule's kName another value";
    }
    return "";
  }
};

Registry& registry() {
  static Registry all;
  return all;
}

// The registry as it may be read, for as long as the lock is held.
std::pair<Registry&, std::unique_lock<std::mutex>> read_registry() {
  Registry& all = registry();
  std::unique_lock lock(all.mutex);
  check(all.refusal.empty(), all.refusal);
  return {all, std::move(lock)};
}

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : ", ") + word;
  return all;
}

}  // namespace

bool add_optimizer(const OptimizerInfo& optimizer, std::uint32_t layout) noexcept {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  // Of another layout, not even the name can be read.
  std::string objection = layout == kRuleLayout
                              ? all.objection(optimizer)
                              : "a rule was compiled with the headers of another version of this library; compile it "
                                "again";
  if (objection.empty())
    all.optimizers.push_back(&optimizer);
  else
    all.refusal = objection;
  return objection.empty();
}

std::string take_refusal() {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  return std::exchange(all.refusal, "");
}

std::vector<const OptimizerInfo*> optimizers() { return read_registry().first.optimizers; }

const OptimizerInfo& find_optimizer(std::string_view name) {
  const OptimizerInfo* found = read_registry().first.find(name);
  check(found != nullptr, "there is no optimizer ", name, "; there are ", found ? "" : joined(optimizer_names()));
  return *found;
}

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const OptimizerInfo* optimizer : optimizers()) names.push_back(lower(optimizer->name));
  return names;
}

}  // namespace forge
