#include "forge/kernels/cuda/sums.cuh"

#include "forge/kernels/cuda/launch_rows.h"
#include "tests/emulator/mutants/parts.h"

namespace forge {

void launch_pass(const cuda::WeightInMemory& weight, const RuleStep& rule, double* sums) {
  using namespace cuda;
  cuda::launch_rows<rules::AdafactorSums>({&weight, 1}, rule, {});
  launch_kernel(add_rows_sums, {1, 1, 1}, 32, 0, nullptr,
                AddArguments{weight.row_sums, weight.W.values.rows, rule.rule().sums, sums});
}

void launch_lines(double* of_rows, double* of_columns, const ConstMatrix& D) {
  using namespace cuda;
  const LinesArguments arguments = lines_arguments(of_rows, of_columns, D);
  launch_kernel(square_lines, {static_cast<unsigned>(D.rows), 1, 1}, kLinesThreads, 0, nullptr, arguments);
  launch_kernel(square_columns, {static_cast<unsigned>(D.cols), 1, 1}, kLinesThreads, 0, nullptr, arguments);
}

}  // namespace forge
