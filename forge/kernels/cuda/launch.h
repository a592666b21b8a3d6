#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "forge/formats/format.h"
#include "forge/gradient/terms.h"
#include "forge/rules/list.h"

// The operations of kernels/ on a GPU: launches onto a stream, which is where errors of the device show. Matrices,
// terms, moments and everything else that is pointed to lie in the device's memory; nothing is allocated, and no host
// waits for anything, so that every call can be captured in a graph. Bits are those of Target::ref but for payloads of
// NaN, where the gradient is made by fp32 multiply-adds (docs/cuda.md). The terms' index is not read by the host: what
// lies outside [0, out) is left out. All throw Error before anything is launched where shapes, formats, terms or the
// workspace do not fit.
namespace forge::cuda {

using Stream = void*;  // a cudaStream_t

// Numbers that kernels read when they run, in place of what the host says; null: the host's.
struct OnDevice {
  const float* scale = nullptr;  // the gradient's scale
  const float* skip = nullptr;   // where it is not 0 nothing is written: an infinity was found, or a norm is known
  // RuleStep::constants() of the same rule, copied: they hold the learning rate and what depends on the step.
  const void* constants = nullptr;
  const std::int64_t* noise_step = nullptr;  // Noise::step of every weight
};

struct Launch {
  Stream stream = nullptr;
  OnDevice numbers;
  bool exact = false;  // fp32 multiply-adds only: the bits of Target::ref
};

constexpr int kMostTerms = 128;   // of an expression; with more, collapse some first
constexpr int kMostWeights = 64;  // of one kernel of update_rows

// As in kernels/update.h, in one kernel. Throws Error where choose_kernel (choose_kernel.h) says that it has none.
void update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Launch& launch);

// A weight whose gradient is scale · D in memory.
struct WeightInMemory {
  Stored W;
  std::span<const Stored> S;
  Dense D;  // of no account in a pass that does not read the gradient
  float scale = 1;
  double* row_sums = nullptr;  // for a pass that sums: (rows, its sums), overwritten
};

// update for each of them, one kernel for kMostWeights: norms and biases of a model are one launch. The sums of a pass
// are left by rows, for add_row_sums. Throws Error where the rule is not of the list.
void update_rows(std::span<const WeightInMemory> weights, const RuleStep& rule, const Launch& launch);

// As in kernels/materialize.h.
void materialize(const Matrix& D, const Expression& G, const Launch& launch);

// As in kernels/norm.h, into `sum` in the device's memory; with `skip`, `sum` stays as it is. Workspace: so many bytes,
// aligned to 8.
std::size_t norm_workspace_bytes(const Expression& G);
void sum_squares(double* sum, const Expression& G, std::span<std::byte> workspace, const Launch& launch);

// sums[k] ← Σ row_sums[r * count + k] over r, from the first row to the last.
void add_row_sums(double* sums, const double* row_sums, std::int64_t rows, int count, const Launch& launch);

// constants ← those of the pass behind this one, given its sums over a weight of (out, in): RuleStep::next, for
// OnDevice::constants of the next update_rows. Made also where that skips. Throws Error where the pass is not of the
// list, is the last or has no sums.
void next_pass(void* constants, const RuleStep& pass, const double* sums, std::int64_t out, std::int64_t in,
               const Launch& launch);

// As in kernels/line_sums.h, of a gradient D in memory: of_rows is overwritten, of_columns added to, so that D may be
// some rows of a gradient after the others.
void sum_squares_of_lines(double* of_rows, double* of_columns, const ConstMatrix& D, const Launch& launch);

}  // namespace forge::cuda
