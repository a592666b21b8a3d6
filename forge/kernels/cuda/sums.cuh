#pragma once

#include <cstdint>

#include "forge/kernels/cuda/numbers.cuh"
#include "forge/kernels/cuda/row_sum.cuh"
#include "forge/kernels/line_sums.h"

// Sums of what is in memory, in the orders of norm_lanes.h and line_sums.h.
namespace forge::cuda {

struct AddArguments {
  const double* row_sums;
  std::int64_t rows;
  int count;
  double* sums;
  OnDevice numbers;
};

// From top to bottom, so by one thread for each: 4096 rows are 4096 additions, some ten microseconds.
static __global__ void add_rows_sums(FORGE_PARAMETER(AddArguments) arguments) {
  const int k = static_cast<int>(threadIdx.x);
  if (is_skipped(arguments.numbers) || k >= arguments.count) return;
  double sum = 0;
  for (std::int64_t row = 0; row < arguments.rows; ++row) sum += arguments.row_sums[row * arguments.count + k];
  arguments.sums[k] = sum;
}

struct LinesArguments {
  OperandArguments D;
  int rows, cols, shard;
  double *of_rows, *of_columns;

  FORGE_DEVICE Columns four(int row, int col, Spot& at) const {
    at = spot_in(rows, cols, row, col);
    return load_numbers(D, at);
  }
};

inline LinesArguments lines_arguments(double* of_rows, double* of_columns, const ConstMatrix& D) {
  auto cols = static_cast<int>(D.cols), shard = static_cast<int>(columns_of_line_shard(D.cols));
  return {arguments_of(D), static_cast<int>(D.rows), cols, shard, of_rows, of_columns};
}

constexpr int kLinesThreads = 128;

// Blocks: four rows each, a warp for one.
static __global__ void __launch_bounds__(kLinesThreads) square_lines(FORGE_PARAMETER(LinesArguments) arguments) {
  const int row = static_cast<int>(blockIdx.x * (kLinesThreads / 32) + threadIdx.x / 32);
  if (row >= arguments.rows) return;
  const int lane = static_cast<int>(threadIdx.x % 32), cols = arguments.cols;
  const int shard = arguments.shard, piece = static_cast<int>(kLinePiece);
  double total = 0;
  for (int from = 0; from < cols; from += shard) {
    double part = 0;
    for (int begin = from; begin < from + shard && begin < cols; begin += piece) {
      RowSum sum;
      for (int col = begin; col < begin + piece; col += kWarpColumns) {
        float x[kThreadColumns];
        Spot at;
        arguments.four(row, col + lane * kThreadColumns, at).store(x);
        sum.add(x, at.valid);
      }
      part += sum.total();
    }
    total += part;
  }
  if (lane == 0) arguments.of_rows[row] = total;
}

// Four columns a thread, from top to bottom.
static __global__ void __launch_bounds__(kLinesThreads) square_columns(FORGE_PARAMETER(LinesArguments) arguments) {
  const int col = static_cast<int>(blockIdx.x * kLinesThreads + threadIdx.x) * kThreadColumns;
  if (col >= arguments.cols) return;
  double sums[kThreadColumns];
  Spot at = spot_in(arguments.rows, arguments.cols, 0, col);
  Columns::each([&](int i) { sums[i] = i < at.valid ? arguments.of_columns[col + i] : 0; });
  for (int row = 0; row < arguments.rows; ++row) {
    float x[kThreadColumns];
    arguments.four(row, col, at).store(x);
    Columns::each([&](int i) {
      double number = x[i];
      sums[i] += number * number;
    });
  }
  Columns::each([&](int i) {
    if (i < at.valid) arguments.of_columns[col + i] = sums[i];
  });
}

}  // namespace forge::cuda
