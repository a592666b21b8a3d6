#pragma once

// The half of register_optimizer.h that is compiled for an instruction set: it opens the target region, which the macro
// closes. What is shared is included before (isa.h says why).
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
#include "forge/kernels/cpu/isa.h"
#include "forge/kernels/cpu/tile.h"
#include "forge/kernels/rule_table.h"

HWY_BEFORE_NAMESPACE();
#include "forge/kernels/cpu/lanes.h"
// Behind lanes.h.
#include "forge/kernels/cpu/multiply_tile.h"
#include "forge/kernels/rule_loop.h"
#include "forge/rules/list.h"

namespace forge::cpu::HWY_NAMESPACE {

template <class... Rule>
inline constexpr RuleRun kOwnLoops[] = {RuleLoop<Rule, Lanes, Beside>::run...};

}  // namespace forge::cpu::HWY_NAMESPACE

#define FORGE_OWN_NAME_(loops, Options) loops##_##Options
#define FORGE_OWN_NAME(loops, Options) FORGE_OWN_NAME_(loops, Options)
// Plain data, without code that would run when the library is loaded: the machine may lack the instruction set.
#define FORGE_REGISTER_OPTIMIZER(Options, ...)                                                                       \
  extern "C" {                                                                                                       \
  extern const forge::RuleRun* const FORGE_OWN_NAME(FORGE_ISA(forge_loops), Options)                                 \
      __attribute__((visibility("hidden")));                                                                         \
  constinit const forge::RuleRun* const FORGE_OWN_NAME(FORGE_ISA(forge_loops),                                       \
                                                       Options) = forge::cpu::HWY_NAMESPACE::kOwnLoops<__VA_ARGS__>; \
  }                                                                                                                  \
  HWY_AFTER_NAMESPACE()
