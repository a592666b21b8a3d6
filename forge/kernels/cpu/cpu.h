#pragma once

#include <span>

#include "forge/formats/format.h"
#include "forge/kernels/rounding.h"
#include "forge/kernels/rule_table.h"
#include "forge/kernels/target.h"
#include "forge/rules/list.h"

// The operations on vector instructions and several threads, as chain + strip + row operation (halves.h). Arguments
// have been checked. kernels/no_cpu has the same symbols for builds without Highway.
namespace forge::cpu {

// The instruction sets this machine can run, slowest first.
std::span<const Target> targets();
// Of a rule of RuleList (kernels/rule_table.h has all).
RuleRun listed_rule_loop(const RuleInfo& rule, Target target);

std::size_t workspace_bytes(const Expression& G, int workers, Target target);
Sums update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Context& context, std::span<RoundingCount> rounding);
void materialize(const Matrix& D, const Expression& G, const Context& context);
double sum_squares(const Expression& G, const Context& context);
void sum_squares_of_lines(const Expression& G, std::span<double> of_rows, std::span<double> of_columns,
                          const Context& context);
void recode(const Stored& to, const Stored& from, Sign sign, const Context& context);

}  // namespace forge::cpu
