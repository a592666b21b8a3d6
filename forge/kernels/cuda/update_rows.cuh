#pragma once

#include <cstdint>

#include "forge/kernels/cuda/numbers.cuh"
#include "forge/kernels/cuda/row_operation.cuh"

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
    std::int64_t segments_before;  // of the weights before it
  };
  One weights[kMostWeights];
  int count;
  std::int64_t segments;  // of all: a row's columns, 128 at a time
  typename Rule::Step step;
  OnDevice numbers;
};

constexpr int kWarpColumns = 32 * kThreadColumns;
constexpr int kRowsThreads = 256;
// Blocks on a multiprocessor: 80 registers a thread, with which no rule spills.
constexpr int kRowsBlocks = 3;

// One dimension of blocks, any number. Each warp takes segments a grid apart.
template <class Rule>
__global__ void __launch_bounds__(kRowsThreads, kRowsBlocks)
    update_rows(FORGE_PARAMETER(RowsArguments<Rule>) arguments) {
  using Operation = typename RowsArguments<Rule>::Operation;
  if (is_skipped(arguments.numbers)) return;
  const auto step = step_of(arguments.numbers, arguments.step);
  const int warps = kRowsThreads / 32, lane = static_cast<int>(threadIdx.x % 32);
  int which = 0;
  for (std::int64_t segment = std::int64_t{blockIdx.x} * warps + threadIdx.x / 32; segment < arguments.segments;
       segment += std::int64_t{gridDim.x} * warps) {
    while (which + 1 < arguments.count && segment >= arguments.weights[which + 1].segments_before) ++which;
    const auto& one = arguments.weights[which];
    // Of 32 bits, because a division of 64 takes as long as the update: the launch looks after the range.
    auto place = static_cast<std::uint32_t>(segment - one.segments_before);
    auto per_row = static_cast<std::uint32_t>((one.weight.cols - 1) / kWarpColumns + 1);
    Spot at = one.weight.spot(static_cast<int>(place / per_row),
                              static_cast<int>(place % per_row) * kWarpColumns + lane * kThreadColumns);
    auto loaded = Operation::load(one.weight, at);
    float g[kThreadColumns];
    fma(Columns(one.term_scale), load_numbers(one.D, at), Columns(-0.f)).store(g);
    Operation::update(one.weight, step, at, loaded, g, scale_of(arguments.numbers, one.scale));
  }
}

}  // namespace forge::cuda
