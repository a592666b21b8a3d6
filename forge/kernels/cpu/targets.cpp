#include <hwy/targets.h>

#include <vector>

#include "forge/base/error.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/cpu/halves.h"

namespace forge::cpu {

#if defined(FORGE_HAS_AVX2)
extern const ChainHalf chain_avx2;
extern const RuleHalf rules_avx2;
extern const FormatHalf formats_avx2;
extern const StoredHalf stored_avx2;
#endif
#if defined(FORGE_HAS_AVX3)
extern const ChainHalf chain_avx512;
extern const RuleHalf rules_avx512;
extern const FormatHalf formats_avx512;
extern const StoredHalf stored_avx512;
#endif
#if defined(FORGE_HAS_STATIC)
extern const ChainHalf chain_neon;
extern const RuleHalf rules_neon;
extern const FormatHalf formats_neon;
extern const StoredHalf stored_neon;
#endif

namespace {

struct Compiled {
  Target target;
  std::int64_t highway_target;
  const ChainHalf* chain;
  const RuleHalf* rules;
  const FormatHalf* formats;
  const StoredHalf* stored;
};

// Slowest first.
constexpr Compiled kCompiled[] = {
#if defined(FORGE_HAS_AVX2)
    {Target::avx2, HWY_AVX2, &chain_avx2, &rules_avx2, &formats_avx2, &stored_avx2},
#endif
#if defined(FORGE_HAS_AVX3)
    {Target::avx512, HWY_AVX3, &chain_avx512, &rules_avx512, &formats_avx512, &stored_avx512},
#endif
#if defined(FORGE_HAS_STATIC)
    {Target::neon, HWY_STATIC_TARGET, &chain_neon, &rules_neon, &formats_neon, &stored_neon},
#endif
};

const Compiled& find(Target target) {
  for (const Compiled& compiled : kCompiled)
    if (compiled.target == target) return compiled;
  fail("kernels: built without ", name_of(target));
}

}  // namespace

std::span<const Target> targets() {
  static const std::vector<Target> supported = [] {
    std::vector<Target> found;
    for (const Compiled& compiled : kCompiled)
      if (hwy::SupportedTargets() & compiled.highway_target) found.push_back(compiled.target);
    return found;
  }();
  return supported;
}

RuleRun listed_rule_loop(const RuleInfo& rule, Target target) { return rule_half(target).rule(rule); }

const ChainHalf& chain_half(Target target) { return *find(target).chain; }
const RuleHalf& rule_half(Target target) { return *find(target).rules; }
const FormatHalf& format_half(Target target) { return *find(target).formats; }
const StoredHalf& stored_half(Target target) { return *find(target).stored; }

}  // namespace forge::cpu
