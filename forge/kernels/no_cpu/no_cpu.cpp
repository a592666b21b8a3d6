#include "forge/base/error.h"
#include "forge/kernels/cpu/cpu.h"

// Built without Highway: only the reference kernels exist.
namespace forge::cpu {
namespace {

[[noreturn]] void absent() { fail("kernels: built without Highway, use Target::ref"); }

}  // namespace

std::span<const Target> targets() { return {}; }
RuleRun listed_rule_loop(const RuleInfo&, Target) { absent(); }
std::size_t workspace_bytes(const Expression&, int, Target) { absent(); }
Sums update(const Stored&, std::span<const Stored>, const Expression&, const RuleStep&, const Context&,
            std::span<RoundingCount>) {
  absent();
}
void materialize(const Matrix&, const Expression&, const Context&) { absent(); }
double sum_squares(const Expression&, const Context&) { absent(); }
void sum_squares_of_lines(const Expression&, std::span<double>, std::span<double>, const Context&) { absent(); }
void recode(const Stored&, const Stored&, Sign, const Context&) { absent(); }

}  // namespace forge::cpu
