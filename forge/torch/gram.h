#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <span>
#include <vector>

#include "forge/gradient/terms.h"

namespace forge {

// A number that is known where `holds` (fp32) is not 0: `value` (fp64). Both of one element, on the gradient's device.
struct Known {
  at::Tensor value, holds;
};

// X Xᵀ (of an embedding: V Vᵀ of the values) of the last weight asked for: q, k and v share their X and follow one
// another. Valid as long as the terms do not change.
struct GramCache {
  std::vector<const void*> key;
  at::Tensor RRt;
};

// ‖Σ terms‖² = Σ (dY dYᵀ)∘(X Xᵀ) over the tokens of all terms together, without multiplying them out; for rows, dY is
// one-hot and never made. G's scale is left out.
// None where a term is Dense or the chain is cheaper (T ≥ in·out / (in + out)). It does not hold where the sum cancels
// so far that its rounding shows (more than 1e-6 of it) or is not finite: then, too, the chain must tell.
// device: where the terms' memory is; the host does not wait for it.
std::optional<Known> gram_sum_squares(const Expression& G, GramCache& cache, at::Device device = at::kCPU);

// The same for each of these, as one parallel job: most products are too small to share among threads.
std::vector<std::optional<Known>> gram_sums_of_squares(std::span<const Expression> gradients, GramCache& cache,
                                                       at::Device device = at::kCPU);

// What no element of Σ terms, nor any partial sum of the chain, exceeds in magnitude, by Cauchy and Schwarz:
// Σ |dY[t]|·|X[t]| over the tokens. T (in + out) operations. None where a term is Dense; NaN where a factor is. One
// number in fp64, on the device.
std::optional<at::Tensor> partial_sum_bound(const Expression& G, at::Device device = at::kCPU);

}  // namespace forge
