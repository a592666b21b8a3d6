#include "forge/kernels/cuda/sums.cuh"

#include "forge/base/integers.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/launch.h"

namespace forge::cuda {

void add_row_sums(double* sums, const double* row_sums, std::int64_t rows, int count, const Launch& launch) {
  constexpr unsigned kWarp = 32;
  check(count <= static_cast<int>(kWarp), "add_row_sums: ", count, " sums, of which a kernel adds ", kWarp);
  launch_kernel(add_rows_sums, {1, 1, 1}, kWarp, 0, launch.stream,
                AddArguments{row_sums, rows, count, sums, launch.numbers});
}

void sum_squares_of_lines(double* of_rows, double* of_columns, const ConstMatrix& D, const Launch& launch) {
  Term term = Dense{D};
  check_expression("sum_squares_of_lines", {D.rows, D.cols, std::span(&term, 1)});
  if (D.rows == 0) return;
  const LinesArguments arguments = lines_arguments(of_rows, of_columns, D);
  auto blocks = [](std::int64_t n, std::int64_t each) { return dim3{static_cast<unsigned>(ceil_div(n, each)), 1, 1}; };
  launch_kernel(square_lines, blocks(D.rows, kLinesThreads / 32), kLinesThreads, 0, launch.stream, arguments);
  if (D.cols == 0) return;
  launch_kernel(square_columns, blocks(D.cols, std::int64_t{kLinesThreads} * kThreadColumns), kLinesThreads, 0,
                launch.stream, arguments);
}

}  // namespace forge::cuda
