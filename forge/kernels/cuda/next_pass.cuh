#pragma once

#include "forge/kernels/cuda/numbers.cuh"
#include "forge/rules/list.h"

namespace forge::cuda {

template <class Rule>
struct NextArguments {
  typename Rule::Step step;
  const double* sums;
  std::int64_t out, in;
  typename Rule::Next::Step* next;
  OnDevice numbers;
};

// By one thread.
template <class Rule>
__global__ void next_constants(FORGE_PARAMETER(NextArguments<Rule>) arguments) {
  Sums sums = {.of_squares = {}, .out = arguments.out, .in = arguments.in};
  for (int k = 0; k < PassOf<Rule>::kSums; ++k) sums.of_squares[k] = arguments.sums[k];
  *arguments.next = Rule::next_pass(step_of(arguments.numbers, arguments.step), sums);
}

}  // namespace forge::cuda
