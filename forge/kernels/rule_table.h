#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "forge/kernels/target.h"

namespace forge {

struct RuleInfo;
namespace cpu {
struct Tile;
}

// W, S ← Rule(W, S, scale · g) over n columns, all in fp32.
struct RuleWork {
  float* w;
  float* const* s;
  const float* g;
  std::int64_t n;
  float scale;
  const void* step;       // the rule's Step
  float* const* numbers;  // numbers[k] gets n of each kind that the rule sums up; may be null where it has none
  // What is this many columns behind those of w and s is asked for meanwhile; it need not be anybody's. 0: nothing.
  std::int64_t ahead = 0;
  // A tile of a chain to run too, the one beside the other; null: none. It has nothing in common with w, s, g and
  // numbers. Not every loop takes one (cpu/halves.h).
  const cpu::Tile* tile = nullptr;
};

using RuleRun = void (*)(const RuleWork& work);

constexpr std::size_t kTargets = 4;

// A rule's loops by Target; null for an instruction set that it was not compiled for.
using RuleLoops = std::array<RuleRun, kTargets>;

// The loop of a rule of RuleList or of a registered one. A rule that was compiled for `ref` alone runs in ref's loop
// everywhere: the same bits, more slowly. Throws Error where the rule is not known.
RuleRun rule_loop(const RuleInfo& rule, Target target);

// rule: of an optimizer that the registry has taken, so that its id is nobody else's.
void add_rule_loops(const RuleInfo& rule, const RuleLoops& loops);

}  // namespace forge
