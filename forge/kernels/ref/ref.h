#pragma once

#include <span>

#include "forge/formats/format.h"
#include "forge/kernels/rounding.h"
#include "forge/kernels/target.h"
#include "forge/rules/list.h"

// The definition of every operation: plain loops, one thread, std::fma. The headers in kernels/ are the contracts;
// arguments have been checked.
namespace forge::ref {

std::size_t workspace_bytes(const Expression& G);
Sums update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Context& context, std::span<RoundingCount> rounding);
void materialize(const Matrix& D, const Expression& G, const Context& context);
double sum_squares(const Expression& G, const Context& context);
void sum_squares_of_lines(const Expression& G, std::span<double> of_rows, std::span<double> of_columns,
                          const Context& context);
void recode(const Stored& to, const Stored& from, Sign sign);

}  // namespace forge::ref
