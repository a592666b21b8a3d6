#pragma once

#include <cstdint>

#include "forge/kernels/cuda/row_sum.cuh"
#include "forge/kernels/cuda/tile.cuh"
#include "forge/kernels/cuda/tile_rows.cuh"
#include "forge/kernels/norm_lanes.h"

// What becomes of the tiles that a Chain makes: the fused kernel, and the same tiles stored or squared.
namespace forge::cuda {

// The tile from (row, col) on goes to the strip. The accumulators end here: what follows needs their registers.
template <class Chain>
FORGE_DEVICE void fill_strip(const ChainArguments& G, int row, int col, float* strip) {
  typename Chain::Tile tile;
  Chain::make(G, row, col, strip, tile);
  __syncthreads();  // everyone has left what shared memory held before
  tile.store(strip);
  __syncthreads();
}

template <class End>
struct TileArguments {
  typename End::Arguments rows;
  ChainArguments G;
};
template <class Operation>
using UpdateArguments = TileArguments<RowUpdate<Operation>>;
using StoreArguments = TileArguments<RowStore>;

// A block's tile goes through the strip to `End`, each warp takes every eighth row. What End reads for a row is there a
// row ahead.
template <class Chain, class End>
FORGE_DEVICE void make_and_take(const TileArguments<End>& arguments, float* shared) {
  const ChainArguments& G = arguments.G;
  const int row0 = static_cast<int>(blockIdx.y) * kTile, col0 = static_cast<int>(blockIdx.x) * kTile;
  fill_strip<Chain>(G, row0, col0, shared);
  const int warp = static_cast<int>(threadIdx.x / 32), col = static_cast<int>(threadIdx.x % 32) * kThreadColumns;
  const End end(arguments.rows, G.numbers, G.scale, row0, col0 + col);
  auto next = end.load(warp);
  FORGE_NO_UNROLL
  for (int row = warp; end.has(row); row += kChainWarps) {
    auto loaded = next;
    next = end.load(row + kChainWarps);
    end.take(row, loaded, shared + strip_place(row, col));
  }
}

// Blocks: tiles, (in, out).
template <class Chain, class Operation>
__global__ void __launch_bounds__(kChainThreads, kChainBlocks)
    update_tiles(FORGE_PARAMETER(UpdateArguments<Operation>) arguments) {
  FORGE_DYNAMIC_SHARED(float, shared);
  if (is_skipped(arguments.G.numbers)) return;
  make_and_take<Chain>(arguments, shared);
}

template <class Chain>
__global__ void __launch_bounds__(kChainThreads, kChainBlocks) store_tiles(FORGE_PARAMETER(StoreArguments) arguments) {
  FORGE_DYNAMIC_SHARED(float, shared);
  make_and_take<Chain>(arguments, shared);
}

struct NormArguments {
  double* row_sums;  // (out)
  ChainArguments G;
};

// row_sums[r] ← the sum of the squares of row r, in the order of norm_lanes.h. Blocks: 128 rows each, whose tiles it
// takes from left to right. Half a warp has a row, a thread one of its 16 lanes.
template <class Chain>
__global__ void __launch_bounds__(kChainThreads, 1) square_rows(FORGE_PARAMETER(NormArguments) arguments) {
  FORGE_DYNAMIC_SHARED(float, shared);
  if (is_skipped(arguments.G.numbers)) return;
  const ChainArguments& G = arguments.G;
  constexpr int kRowsAtOnce = 2 * kChainWarps;
  const int row0 = static_cast<int>(blockIdx.x) * kTile, lane = static_cast<int>(threadIdx.x % kNormLanes);
  const int first = static_cast<int>(threadIdx.x / kNormLanes);
  const float scale = scale_of(G.numbers, G.scale);
  double sums[kTile / kRowsAtOnce] = {};
  FORGE_NO_UNROLL
  for (int col0 = 0; col0 < G.in; col0 += kTile) {
    fill_strip<Chain>(G, row0, col0, shared);
    FORGE_UNROLL
    for (int k = 0; k < kTile / kRowsAtOnce; ++k) {
      FORGE_NO_UNROLL
      for (int c = lane; c < kTile && c < G.in - col0; c += kNormLanes) {
        double g = scale * shared[strip_place(first + k * kRowsAtOnce, c)];
        sums[k] += g * g;
      }
    }
  }
  FORGE_UNROLL
  for (int k = 0; k < kTile / kRowsAtOnce; ++k) {
    double sum = sums[k];
    for (int lanes = kNormLanes / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
    const int row = row0 + first + k * kRowsAtOnce;
    if (lane == 0 && row < G.out) arguments.row_sums[row] = sum;
  }
}

}  // namespace forge::cuda
