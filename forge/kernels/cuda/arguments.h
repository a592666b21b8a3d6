#pragma once

#include <span>
#include <variant>

#include "forge/base/error.h"
#include "forge/kernels/cuda/row_operation.cuh"
#include "forge/kernels/cuda/tile.cuh"

// What the host checks and packs before a launch.
namespace forge::cuda {

// Of a gradient's terms, but for what a look at the device's memory would tell.
void check_expression(const char* who, const Expression& G);

ChainArguments chain_arguments(const Expression& G, const OnDevice& numbers);

template <int kMatrices>
WeightArguments<kMatrices> weight_arguments(const Stored& W, std::span<const Stored> S, const OnDevice& numbers) {
  WeightArguments<kMatrices> weight = {
      {}, W.noise, numbers.noise_step, static_cast<int>(W.values.rows), static_cast<int>(W.values.cols)};
  weight.matrices[0] = arguments_of(W, 0);
  for (int k = 1; k < kMatrices; ++k) weight.matrices[k] = arguments_of(S[static_cast<std::size_t>(k - 1)], k);
  return weight;
}

}  // namespace forge::cuda
