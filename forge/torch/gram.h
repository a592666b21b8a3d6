#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <span>
#include <vector>

#include "forge/gradient/terms.h"

namespace forge {

// X Xᵀ (of an embedding: V Vᵀ of the values) of the last weight asked for: q, k and v share their X and follow one
// another. Valid as long as the terms do not change.
struct GramCache {
  std::vector<const void*> key;
  at::Tensor RRt;
};

// ‖G‖² = Σ (dY dYᵀ)∘(X Xᵀ) over the tokens of all terms together, without G; for rows, dY is one-hot and never made.
// None where a term is Dense, where the chain is cheaper (T ≥ in·out / (in + out)), or where the sum cancels so far
// that its rounding shows (more than 1e-6 of it) or is not finite: then the chain must tell.
// device: where the terms' memory is.
std::optional<double> gram_sum_squares(const Expression& G, GramCache& cache, at::Device device = at::kCPU);

// The same for each of these, as one parallel job: most products are too small to share among threads.
std::vector<std::optional<double>> gram_sums_of_squares(std::span<const Expression> gradients, GramCache& cache,
                                                        at::Device device = at::kCPU);

// What no element of G, nor any partial sum of its chain, exceeds in magnitude, by Cauchy and Schwarz:
// Σ |dY[t]|·|X[t]| over the tokens. T (in + out) operations. None where a term is Dense; NaN where a factor is.
std::optional<double> partial_sum_bound(const Expression& G, at::Device device = at::kCPU);

}  // namespace forge
