#include "forge/kernels/cuda/operations.h"

namespace forge::cuda {

const Operations& operations() {
  static constexpr Operations all = {.update = update,
                                     .update_rows = update_rows,
                                     .materialize = materialize,
                                     .norm_workspace_bytes = norm_workspace_bytes,
                                     .sum_squares = sum_squares,
                                     .add_row_sums = add_row_sums,
                                     .next_pass = next_pass,
                                     .sum_squares_of_lines = sum_squares_of_lines};
  return all;
}

}  // namespace forge::cuda
