#pragma once

#include <cstdint>

#include "forge/kernels/cuda/numbers.cuh"
#include "forge/kernels/cuda/row_operation.cuh"
#include "forge/kernels/cuda/row_sum.cuh"

// The row operation fed from memory: the second phase of ordinary training, and the update of everything that is small.
namespace forge::cuda {

// Of a weight and its gradient scale · s · D.
template <class Rule>
struct RowsArguments {
  using Operation = RowOperation<Rule, AnyFormat, AnyFormat>;
  struct One {
    typename Operation::Arguments weight;
    OperandArguments D;
    float term_scale, scale;
    double* row_sums;           // of a pass that sums: each row's, one behind another
    std::int64_t units_before;  // of the weights before it
  };
  One weights[kMostWeights];
  int count;
  std::int64_t units;  // of all
  typename Rule::Step step;
  OnDevice numbers;
};

// What a warp takes at a time: 128 columns of a row or, in a pass that sums, the row, whose numbers have an order.
template <class Rule>
constexpr bool kTakesRows = PassOf<Rule>::kSums > 0;

constexpr int kRowsThreads = 256;
// Blocks on a multiprocessor: 80 registers a thread, with which no element-wise rule spills, or 128 beside sums.
template <class Rule>
constexpr int kRowsBlocks = kTakesRows<Rule> ? 2 : 3;

// Returns how many of the thread's four columns from `col` on are the weight's.
template <class Rule>
FORGE_DEVICE int update_four(const RowsArguments<Rule>& arguments, const typename RowsArguments<Rule>::One& one,
                             const typename Rule::Step& step, int row, int col, float* const* numbers) {
  using Operation = typename RowsArguments<Rule>::Operation;
  Spot at = one.weight.spot(row, col + static_cast<int>(threadIdx.x % 32) * kThreadColumns);
  auto loaded = Operation::load(one.weight, at);
  float g[kThreadColumns] = {};
  if constexpr (PassOf<Rule>::kReadsGradient)
    fma(Columns(one.term_scale), load_numbers(one.D, at), Columns(-0.f)).store(g);
  Operation::update(one.weight, step, at, loaded, g, scale_of(arguments.numbers, one.scale), numbers);
  return at.valid;
}

template <class Rule>
FORGE_DEVICE void update_row(const RowsArguments<Rule>& arguments, const typename RowsArguments<Rule>::One& one,
                             const typename Rule::Step& step, int row) {
  constexpr int kSums = PassOf<Rule>::kSums;
  RowSum sums[kSums];
  FORGE_NO_UNROLL
  for (int col = 0; col < one.weight.cols; col += kWarpColumns) {
    float of[kSums][kThreadColumns], *numbers[kSums];
    unrolled<kSums>([&]<int k>() { numbers[k] = of[k]; });
    int valid = update_four<Rule>(arguments, one, step, row, col, numbers);
    unrolled<kSums>([&]<int k>() { sums[k].add(of[k], valid); });
  }
  unrolled<kSums>([&]<int k>() {
    double total = sums[k].total();
    if (threadIdx.x % 32 == 0) one.row_sums[std::int64_t{row} * kSums + k] = total;
  });
}

// One dimension of blocks, any number. Each warp takes units a grid apart.
template <class Rule>
__global__ void __launch_bounds__(kRowsThreads, kRowsBlocks<Rule>)
    update_rows(FORGE_PARAMETER(RowsArguments<Rule>) arguments) {
  if (is_skipped(arguments.numbers)) return;
  const auto step = step_of(arguments.numbers, arguments.step);
  const int warps = kRowsThreads / 32;
  int which = 0;
  for (std::int64_t unit = std::int64_t{blockIdx.x} * warps + threadIdx.x / 32; unit < arguments.units;
       unit += std::int64_t{gridDim.x} * warps) {
    while (which + 1 < arguments.count && unit >= arguments.weights[which + 1].units_before) ++which;
    const auto& one = arguments.weights[which];
    // Of 32 bits, because a division of 64 takes as long as the update: the launch looks after the range.
    auto place = static_cast<std::uint32_t>(unit - one.units_before);
    if constexpr (kTakesRows<Rule>) {
      update_row<Rule>(arguments, one, step, static_cast<int>(place));
    } else {
      auto per_row = static_cast<std::uint32_t>((one.weight.cols - 1) / kWarpColumns + 1);
      update_four<Rule>(arguments, one, step, static_cast<int>(place / per_row),
                        static_cast<int>(place % per_row) * kWarpColumns, nullptr);
    }
  }
}

}  // namespace forge::cuda
