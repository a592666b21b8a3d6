#pragma once

#include <cstdint>

#include "forge/kernels/cuda/numbers.cuh"
#include "forge/kernels/cuda/ptx/cp_async.cuh"

// A tile of G = Σ sᵢ · termᵢ as a block makes it, whatever multiplies: what the chains (ffma.cuh, mma.cuh) share.
namespace forge::cuda {

constexpr int kTile = 128;
constexpr int kChainThreads = 256;
constexpr int kChainWarps = kChainThreads / 32;

// Shared memory holds stages of operands, tokens of dY, then of X: one is computed on, the others land or are loaded.
constexpr int kStages = 4;
constexpr int kStageBytes = 16 * 1024;
// And then the strip: the tile, of which a warp takes whole rows, every eighth. Rows are 8 columns further apart than
// they are long, so that lanes which write pairs below one another do not meet in a bank.
constexpr int kStripStride = kTile + 8;
constexpr int kChainShared = kTile * kStripStride * static_cast<int>(sizeof(float));
static_assert(kChainShared >= kStages * kStageBytes);
// Two blocks on a multiprocessor (136 KiB, 128 registers a thread): while one ends its tile, the other multiplies.
constexpr int kChainBlocks = 2;

enum class TermKind : std::uint8_t { outer, rows, dense };

struct TermArguments {
  TermKind kind;
  float scale;
  OperandArguments first, second;  // dY and X; values; D
  const std::int64_t* index;
  int tokens;
};

struct ChainArguments {
  int out, in;
  int terms;
  float scale;
  OnDevice numbers;
  TermArguments term[kMostTerms];
};

FORGE_DEVICE int strip_place(int row, int col) { return row * kStripStride + col; }

// Calls compute(step) for 0 ≤ step < steps, whose operands load(step) has brought to stage step % kStages three steps
// before. Both may speak of all threads: no thread is more than a step ahead of another.
template <class Load, class Compute>
FORGE_DEVICE void pipeline(int steps, Load&& load, Compute&& compute) {
  constexpr int kAhead = kStages - 1;
  __syncthreads();  // everyone has left what shared memory held before
  // The first steps only load.
  FORGE_NO_UNROLL
  for (int step = -kAhead; step < steps; ++step) {
    if (step >= 0) {
      cp_async_wait<kAhead - 1>();
      __syncthreads();  // this stage is there for everyone, and everyone has left the one before, which is loaded next
    }
    if (step + kAhead < steps) load(step + kAhead);
    cp_async_commit();
    if (step >= 0) compute(step);
  }
}

// g ← fma(s, D, g) for each element of a tile, D through the strip, so that a warp reads whole rows.
template <class Tile>
FORGE_DEVICE void add_dense(const ChainArguments& all, const TermArguments& term, int row, int col, float* strip,
                            Tile& tile) {
  const int warp = static_cast<int>(threadIdx.x / 32), c = static_cast<int>(threadIdx.x % 32) * kThreadColumns;
  __syncthreads();  // everyone has left what shared memory held before
  FORGE_NO_UNROLL
  for (int r = warp; r < kTile; r += kChainWarps)
    load_numbers(term.first, spot_in(all.out, all.in, row + r, col + c)).store(strip + strip_place(r, c));
  __syncthreads();
  tile.each([&](int r, int c, float& g) { g = std::fma(term.scale, strip[strip_place(r, c)], g); });
}

}  // namespace forge::cuda
