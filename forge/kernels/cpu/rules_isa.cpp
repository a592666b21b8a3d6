// Rules over vector registers, alone and beside a tile of a chain: numbers in fp32, whatever they are stored as.
#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "forge/base/error.h"
#include "forge/base/hash.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"

HWY_BEFORE_NAMESPACE();
#include "forge/kernels/cpu/lanes.h"
// Behind lanes.h.
#include "forge/kernels/cpu/multiply_tile.h"
#include "forge/kernels/rule_loop.h"
#include "forge/rules/list.h"

namespace forge::cpu {
namespace HWY_NAMESPACE {
namespace {

RuleRun find_rule(const RuleInfo& rule) {
  RuleRun found = nullptr;
  RuleList::for_each([&]<class Rule>() {
    if (rule.id == fnv1a(Rule::kName)) found = RuleLoop<Rule, Lanes, Beside>::run;
  });
  return found;
}

void scaled(const float* g, std::int64_t n, float scale, float* to) {
  std::int64_t j = 0;
  for (; j + Lanes::kLanes <= n; j += Lanes::kLanes) (Lanes(scale) * Lanes::load(g + j)).store(to + j);
  for (; j < n; ++j) to[j] = scale * g[j];
}

}  // namespace

constexpr RuleHalf kRuleHalf = {find_rule, !std::is_void_v<Beside>, scaled};

}  // namespace HWY_NAMESPACE

extern const RuleHalf FORGE_ISA(rules);
const RuleHalf FORGE_ISA(rules) = HWY_NAMESPACE::kRuleHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
