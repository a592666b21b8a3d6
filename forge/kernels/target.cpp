#include "forge/kernels/target.h"

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "forge/base/error.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

const char* name_of(Target target) {
  switch (target) {
    case Target::ref:
      return "ref";
    case Target::avx2:
      return "avx2";
    case Target::avx512:
      return "avx512";
    case Target::neon:
      return "neon";
  }
  fail("target ", static_cast<int>(target), " is not known");
}

std::span<const Target> available_targets() {
  static const std::vector<Target> all = [] {
    std::vector<Target> targets = {Target::ref};
    targets.insert(targets.end(), cpu::targets().begin(), cpu::targets().end());
    return targets;
  }();
  return all;
}

Target best_target() {
  static const Target best = [] {
    std::span<const Target> all = available_targets();
    const char* wanted = std::getenv("FORGE_TARGET");
    if (!wanted || !*wanted) return all.back();
    std::string names;
    for (Target target : all) {
      if (std::string_view(wanted) == name_of(target)) return target;
      names += std::string(names.empty() ? "" : ", ") + name_of(target);
    }
    fail("FORGE_TARGET is ", wanted, "; this machine has ", names);
  }();
  return best;
}

std::size_t workspace_bytes(const Expression& G, int workers, Target target) {
  return target == Target::ref ? ref::workspace_bytes(G) : cpu::workspace_bytes(G, workers, target);
}

}  // namespace forge
