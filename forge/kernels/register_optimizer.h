#pragma once

// A rule of one's own: the last include of a file that has a rule and its options, written as those in forge/rules are,
// and that ends with
//
//   FORGE_REGISTER_OPTIMIZER(MyOptions, MyRule)      in their namespace; or several rules, as Optimizing has them
//
// The file is compiled once for the host and `ref` and, with FORGE_ISA_… defined, once for each instruction set;
// CMake's forge_add_rule and Python's forge_optim.load_rule do so. What the file includes after this header is compiled
// for each of them too. docs/rules.md has an example.
#if defined(FORGE_ISA_AVX2) || defined(FORGE_ISA_AVX3) || defined(FORGE_ISA_STATIC)
#include "forge/kernels/cpu/own_rule_isa.h"
#else

#include <array>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "forge/base/scalar.h"
#include "forge/kernels/cpu/tile.h"
#include "forge/kernels/rule_loop.h"
#include "forge/kernels/rule_table.h"
#include "forge/rules/registry.h"

namespace forge {

// What the loops of a rule that is compiled apart have to have in common with this library, beside kRuleLayout.
constexpr std::uint32_t kRuleLoopLayout = [] {
  std::size_t layout = kRuleLayout;
  for (std::size_t size :
       {sizeof(RuleWork), sizeof(cpu::Tile), std::size_t{cpu::kTileRowsAvx2}, std::size_t{cpu::kTileRowsAvx512},
        std::size_t{cpu::kTileRowsOther}, std::size_t{cpu::kTileVectors}})
    layout = layout * 131 + size;
  return static_cast<std::uint32_t>(layout);
}();

// Both or nothing: adds the optimizer (rules/registry.h) and the loops of its rules, in their order.
bool register_optimizer(const OptimizerInfo& optimizer, std::span<const RuleLoops> loops,
                        std::uint32_t layout = kRuleLoopLayout) noexcept;

template <class Options, class Rule>
constexpr bool check_own_rule() {
  using Step = typename Rule::Step;
  static_assert(std::is_same_v<typename Rule::Options, Options>, "a rule is registered with its own Options");
  static_assert(!has_next_pass<Rule>() && !has_lines<Rule>(), "a rule of one's own takes one pass");
  static_assert(std::is_trivially_copyable_v<Step>, "a rule's Step holds plain numbers and flags only");
  static_assert(sizeof(Step) <= RuleStep::kMostBytes, "a rule's Step is at most 96 bytes: 24 constants");
  static_assert(Rule::kMoments.size() <= kMaxMoments, "a rule keeps no more moments than the largest of RuleList");
  static_assert(scalars_of<Rule>().size() <= kMaxScalars, "a rule keeps at most two scalars");
  static_assert(std::is_same_v<decltype(Options::lr), double>, "a rule's Options have a double lr, for schedules");
  return true;
}

// isa: by Target, where the loops of an instruction set are; null where they were not compiled.
template <class Options, class... Rule>
bool register_own(const std::array<const RuleRun* const*, kTargets>& isa) noexcept {
  static_assert((check_own_rule<Options, Rule>() && ...));
  std::vector<RuleLoops> loops = {RuleLoops{RuleLoop<Rule, Scalar>::run}...};
  for (std::size_t target = 0; target < kTargets; ++target)
    for (std::size_t k = 0; isa[target] && k < loops.size(); ++k) loops[k][target] = (*isa[target])[k];
  return register_optimizer(optimizer_info<Optimizing<Options, Rule...>>(), loops);
}

}  // namespace forge

// Hidden: another library's options may have the same name.
#define FORGE_OWN_LOOPS(Options, target) \
  extern const forge::RuleRun* const forge_loops_##target##_##Options __attribute__((weak, visibility("hidden")))

#define FORGE_REGISTER_OPTIMIZER(Options, ...)                                                               \
  extern "C" {                                                                                               \
  FORGE_OWN_LOOPS(Options, avx2);                                                                            \
  FORGE_OWN_LOOPS(Options, avx512);                                                                          \
  FORGE_OWN_LOOPS(Options, neon);                                                                            \
  }                                                                                                          \
  [[maybe_unused]] static const bool forge_registered_##Options = forge::register_own<Options, __VA_ARGS__>( \
      {nullptr, &forge_loops_avx2_##Options, &forge_loops_avx512_##Options, &forge_loops_neon_##Options})

#endif
