#include <hwy/targets.h>

#include <vector>

#include "forge/base/error.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/cpu/halves.h"

namespace forge::cpu {

#if defined(FORGE_HAS_AVX2)
extern const ChainHalf chain_avx2;
extern const RowHalf row_avx2;
#endif
#if defined(FORGE_HAS_AVX3)
extern const ChainHalf chain_avx512;
extern const RowHalf row_avx512;
#endif
#if defined(FORGE_HAS_STATIC)
extern const ChainHalf chain_neon;
extern const RowHalf row_neon;
#endif

namespace {

struct Compiled {
  Target target;
  std::int64_t highway_target;
  const ChainHalf* chain;
  const RowHalf* row;
};

// Slowest first.
constexpr Compiled kCompiled[] = {
#if defined(FORGE_HAS_AVX2)
    {Target::avx2, HWY_AVX2, &chain_avx2, &row_avx2},
#endif
#if defined(FORGE_HAS_AVX3)
    {Target::avx512, HWY_AVX3, &chain_avx512, &row_avx512},
#endif
#if defined(FORGE_HAS_STATIC)
    {Target::neon, HWY_STATIC_TARGET, &chain_neon, &row_neon},
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

const ChainHalf& chain_half(Target target) { return *find(target).chain; }
const RowHalf& row_half(Target target) { return *find(target).row; }

}  // namespace forge::cpu
