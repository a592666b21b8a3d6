#include "forge/kernels/rule_table.h"

#include <map>
#include <mutex>

#include "forge/base/error.h"
#include "forge/base/scalar.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/rule_loop.h"
#include "forge/rules/list.h"

namespace forge {
namespace {

RuleRun& at(RuleLoops& loops, Target target) { return loops[static_cast<std::size_t>(target)]; }

struct Table {
  std::mutex mutex;
  std::map<std::uint32_t, RuleLoops> loops;  // by the rule's id

  Table() {
    RuleList::for_each([&]<class Rule>() {
      RuleLoops& of_rule = loops[kRuleInfo<Rule>.id];
      at(of_rule, Target::ref) = RuleLoop<Rule, Scalar>::run;
      for (Target target : cpu::targets()) at(of_rule, target) = cpu::listed_rule_loop(kRuleInfo<Rule>, target);
    });
  }
};

Table& table() {
  static Table all;
  return all;
}

}  // namespace

RuleRun rule_loop(const RuleInfo& rule, Target target) {
  Table& all = table();
  std::lock_guard lock(all.mutex);
  auto found = all.loops.find(rule.id);
  check(found != all.loops.end(), "rule ", rule.name,
        " is not registered; end the file that it stands in with FORGE_REGISTER_OPTIMIZER");
  RuleRun loop = at(found->second, target);
  return loop ? loop : at(found->second, Target::ref);
}

void add_rule_loops(const RuleInfo& rule, const RuleLoops& loops) {
  Table& all = table();
  std::lock_guard lock(all.mutex);
  all.loops[rule.id] = loops;
}

}  // namespace forge
