#pragma once

#include "forge/kernels/cuda/launch.h"

namespace forge::cuda {

// The operations of launch.h as values: who calls them by these need not be linked with CUDA.
struct Operations {
  decltype(&cuda::update) update;
  decltype(&cuda::update_rows) update_rows;
  decltype(&cuda::materialize) materialize;
  decltype(&cuda::norm_workspace_bytes) norm_workspace_bytes;
  decltype(&cuda::sum_squares) sum_squares;
  decltype(&cuda::add_row_sums) add_row_sums;
  decltype(&cuda::next_pass) next_pass;
  decltype(&cuda::sum_squares_of_lines) sum_squares_of_lines;
};

const Operations& operations();

}  // namespace forge::cuda
