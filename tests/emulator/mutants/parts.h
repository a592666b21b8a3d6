#pragma once

#include <span>

#include "forge/kernels/cuda/launch.h"

// The parts of the CUDA kernels that mutants are made of (tests/test_cuda_mutants.py), one object each: tiles.cpp,
// stored.cpp, rows.cpp, sums.cpp, hopper.cpp. Each has one instance, so that it compiles in a second.
namespace forge {

void launch_tiles(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule);
void launch_halves(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule);
void launch_store(const Matrix& D, const Expression& G);
double launch_norm(const Expression& G);
void launch_on_hopper(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                      unsigned blocks);
void launch_rows(std::span<const cuda::WeightInMemory> weights, const RuleStep& rule);
void launch_pass(const cuda::WeightInMemory& weight, const RuleStep& rule, double* sums);
void launch_lines(double* of_rows, double* of_columns, const ConstMatrix& D);

}  // namespace forge
