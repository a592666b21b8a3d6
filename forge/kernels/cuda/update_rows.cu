#include "forge/kernels/check.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/cuda/launch_rows.h"

namespace forge::cuda {

void update_rows(std::span<const WeightInMemory> weights, const RuleStep& rule, const Launch& launch) {
  for (const WeightInMemory& w : weights) {
    check_weight("update_rows", w.W, w.S, w.W.values.rows, w.W.values.cols, rule);
    Term term = w.D;
    if (rule.rule().reads_gradient)
      check_expression("update_rows", {w.W.values.rows, w.W.values.cols, std::span(&term, 1)});
    check(rule.rule().sums == 0 || w.row_sums != nullptr, "update_rows: ", rule.name(),
          " sums, and a weight has no row_sums for it");
  }
  bool known = launch_rows_of_part<0>(weights, rule, launch) || launch_rows_of_part<1>(weights, rule, launch) ||
               launch_rows_of_part<2>(weights, rule, launch) || launch_rows_of_part<3>(weights, rule, launch);
  check(known, "update_rows: ", rule.name(), " has no kernel: it is not of the list");
}

}  // namespace forge::cuda
