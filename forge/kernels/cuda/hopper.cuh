#pragma once

#include <cstddef>
#include <cstdint>

#include "forge/kernels/cuda/ptx/barrier.cuh"
#include "forge/kernels/cuda/ptx/mbarrier.cuh"
#include "forge/kernels/cuda/ptx/tma.cuh"
#include "forge/kernels/cuda/ptx/wgmma.cuh"
#include "forge/kernels/cuda/tile_rows.cuh"

// Hopper's own kernels: dYᵀX of two bf16 matrices. A block stays for many tiles. Its first warpgroup loads operands by
// TMA, the two others have every second tile each, in turn: one multiplies (wgmma) while the other does to the rows of
// the tile before what is to become of them. sm_90a.
namespace forge::cuda {

template <class End>
struct HopperArguments {
  TensorMap dY, X;
  int out, in, tokens;
  float scale;
  OnDevice numbers;
  typename End::Arguments rows;
};

namespace hopper {

constexpr int kGroupThreads = 128, kGroupWarps = 4, kMultipliers = 2;
constexpr int kThreads = (1 + kMultipliers) * kGroupThreads;
// 65,536 registers for 128 threads that load and 256 that multiply.
constexpr int kLoaderRegisters = 24, kMultiplierRegisters = 240;
static_assert(kGroupThreads * (kLoaderRegisters + kMultipliers * kMultiplierRegisters) <= 65536);

// A box is 64 tokens of 64 columns, whose 128 bytes are the widest swizzle; a stage is two of dY, then two of X.
constexpr int kBox = 64, kBoxBytes = kBox * kBox * 2;
constexpr int kBoxes = kTile / kBox;
constexpr int kStageTokens = kBox, kStageBytes = 2 * kBoxes * kBoxBytes;
constexpr int kStages = 6;
// Rows of a warp's strip: what one half of its fragments of a product holds.
constexpr int kStripRows = 8, kStripBytes = kStripRows * kTile * static_cast<int>(sizeof(float));
constexpr int kShared = kStages * kStageBytes + kMultipliers * kGroupWarps * kStripBytes + 2 * kStages * 8;
static_assert(kShared <= 227 * 1024);
// Rows of W and S that a warp reads ahead. 8 warps with 2 rows of 1.5 KiB have 24 KiB under way, which is what a
// multiprocessor's share of 3.4 TB/s brings in a microsecond.
constexpr int kRowsAhead = 2;

// The stages, which tiles take one after another: step n, counted over all tiles of a block, is in stage n % kStages.
struct Ring {
  std::byte* stages;
  std::uint64_t *full, *empty;  // of each stage: its operands are there; nobody reads them any more

  FORGE_DEVICE explicit Ring(std::byte* shared)
      : stages(shared), full(reinterpret_cast<std::uint64_t*>(shared + kShared) - 2 * kStages), empty(full + kStages) {}

  // By one thread.
  FORGE_DEVICE void init() const {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, kGroupWarps);
    }
    mbarrier_init_fence();
  }
  FORGE_DEVICE std::byte* stage(int step) const { return stages + step % kStages * kStageBytes; }
  // Phases of a stage's barriers take turns: 0 in the first round.
  FORGE_DEVICE static std::uint32_t parity(int step) { return static_cast<std::uint32_t>(step / kStages % 2); }
  FORGE_DEVICE void wait_full(int step) const { mbarrier_wait_parity(full + step % kStages, parity(step)); }
  // Until the round before is over; before the first is none.
  FORGE_DEVICE void wait_empty(int step) const { mbarrier_wait_parity(empty + step % kStages, parity(step) ^ 1); }
  // By each warp that has read a stage, when its own part is done.
  FORGE_DEVICE void release(int step) const {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + step % kStages);
  }
};

// The tiles of a gradient in groups of eight rows of tiles, each group column by column: tiles that are made at the
// same time share operands in the cache.
struct Tiles {
  int rows, cols, steps;  // steps: of each

  template <class Arguments>
  FORGE_DEVICE explicit Tiles(const Arguments& a)
      : rows((a.out - 1) / kTile + 1), cols((a.in - 1) / kTile + 1), steps((a.tokens - 1) / kStageTokens + 1) {}

  FORGE_DEVICE int count() const { return rows * cols; }
  FORGE_DEVICE void place(int tile, int& row, int& col) const {
    constexpr int kGroup = 8;
    const int group = tile / (kGroup * cols), within = tile - group * kGroup * cols;
    const int left = rows - group * kGroup, height = left < kGroup ? left : kGroup;
    row = (group * kGroup + within % height) * kTile;
    col = within / height * kTile;
  }
};

// One thread: every box of every tile of this block, as stages become free.
template <class Arguments>
FORGE_DEVICE void load_tiles(const Arguments& a, const Ring& ring) {
  const Tiles tiles(a);
  int step = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.count(); tile += static_cast<int>(gridDim.x)) {
    int row, col;
    tiles.place(tile, row, col);
    FORGE_NO_UNROLL
    for (int k = 0; k < tiles.steps; ++k, ++step) {
      std::uint64_t* full = ring.full + step % kStages;
      std::byte* to = ring.stage(step);
      ring.wait_empty(step);
      mbarrier_arrive_expect_tx(full, kStageBytes);
      for (int box = 0; box < kBoxes; ++box)
        tma_load_2d(to + box * kBoxBytes, a.dY, full, row + box * kBox, k * kStageTokens);
      for (int box = 0; box < kBoxes; ++box)
        tma_load_2d(to + (kBoxes + box) * kBoxBytes, a.X, full, col + box * kBox, k * kStageTokens);
    }
  }
}

// Of boxes from an address in shared memory on, 64 columns each: which swizzle (1: of 128 bytes), how far 8 tokens are
// from the next 8, how far a box from the next; all in units of 16 bytes.
FORGE_DEVICE std::uint64_t descriptor(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle = std::uint64_t{1} << 62;
  constexpr std::uint64_t kEightTokens = 8 * kBox * 2 / 16, kNextBox = kBoxBytes / 16;
  return kSwizzle | kEightTokens << 32 | kNextBox << 16 | address / 16;
}

// Rows 0 to 63 of the tile, and 64 to 127. Element v of a thread: see wgmma_m64n128k16_bf16.
using Fragments = float[kBoxes][kTile / 2];

// Issues the products of a tile, whose first stage is that of `first`. The last ones are still running at the end.
FORGE_DEVICE void multiply(const Ring& ring, int first, int steps, Fragments& g) {
  FORGE_NO_UNROLL
  for (int k = 0; k < steps; ++k) {
    const int step = first + k;
    ring.wait_full(step);
    const std::uint32_t address = shared_address(ring.stage(step));
    const std::uint64_t dY = descriptor(address), X = descriptor(address + kBoxes * kBoxBytes);
    wgmma_fence();
    FORGE_UNROLL
    for (int token = 0; token < kStageTokens; token += 16) {
      const int from = token * kBox * 2 / 16;
      FORGE_UNROLL
      for (int box = 0; box < kBoxes; ++box)
        wgmma_m64n128k16_bf16(g[box], dY + box * kBoxBytes / 16 + from, X + from, k + token > 0);
    }
    wgmma_commit();
    if (k > 0) {  // the step before has ended
      wgmma_wait<1>();
      ring.release(step - 1);
    }
  }
}

// Where four columns of a row begin in the strip. They are exchanged by the row's number, so that neither eight rows of
// fragments, written two columns a lane, nor a row, read four a lane, meet in a bank.
FORGE_DEVICE int four_place(int row, int four) { return row * kTile + (four ^ row % 4 * 2) * kThreadColumns; }

// Eight of the 32 rows that a warp has in its fragments go to its strip: the upper or lower half of 16 in a product.
FORGE_DEVICE void fill_strip(const float (&g)[kTile / 2], int half, float* strip) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = lane / 4;
  FORGE_UNROLL
  for (int i = 0; i < kTile / 8; ++i)
    *reinterpret_cast<float2*>(strip + four_place(row, 2 * i + lane % 4 / 2) + lane % 2 * 2) =
        make_float2(g[4 * i + 2 * half], g[4 * i + 2 * half + 1]);
}

// Row n of the warp's 32, in the tile; behind the last, no row of it.
FORGE_DEVICE int row_of_warp(int n) {
  const int warp = static_cast<int>(threadIdx.x / 32) % kGroupWarps;
  return n / 16 * 64 + warp * 16 + n % 16;
}

// The rows of a warp, eight at a time through its strip. next: what `end` has read ahead.
template <class End, class Loaded>
FORGE_DEVICE void take_rows(const End& end, const Fragments& g, Loaded (&next)[kRowsAhead], float* strip) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  FORGE_NO_UNROLL
  for (int part = 0; part < 2 * kBoxes; ++part) {
    __syncwarp();  // everyone has left the rows before
    // Fragments are registers, which have no index at run time.
    FORGE_UNROLL
    for (int k = 0; k < 2 * kBoxes; ++k)
      if (k == part) fill_strip(g[k / 2], k % 2, strip);
    __syncwarp();
    FORGE_NO_UNROLL
    for (int r = 0; r < kStripRows; r += kRowsAhead) {
      FORGE_UNROLL
      for (int ahead = 0; ahead < kRowsAhead; ++ahead) {
        const int n = part * kStripRows + r + ahead, row = row_of_warp(n);
        const Loaded loaded = next[ahead];
        next[ahead] = end.load(row_of_warp(n + kRowsAhead));
        if (end.has(row)) end.take(row, loaded, strip + four_place(r + ahead, lane));
      }
    }
  }
}

// One of the two warpgroups that multiply: every second tile of the block.
template <class End>
FORGE_DEVICE void multiply_and_take(const HopperArguments<End>& a, const Ring& ring, int group) {
  constexpr int kMultiply = 1;  // kMultiply + g: the barrier at which group g waits for its turn
  constexpr int kBoth = kMultipliers * kGroupThreads;
  const Tiles tiles(a);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32) - kGroupWarps;
  auto* strip = reinterpret_cast<float*>(ring.stages + kStages * kStageBytes + warp * kStripBytes);
  if (group == 1) barrier_arrive(kMultiply, kBoth);  // the first tile is the other's
  int turn = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.count(); tile += static_cast<int>(gridDim.x), ++turn) {
    if (turn % kMultipliers != group) continue;
    int row, col;
    tiles.place(tile, row, col);
    Fragments g;
    barrier_sync(kMultiply + group, kBoth);
    multiply(ring, turn * tiles.steps, tiles.steps, g);
    if (tile + static_cast<int>(gridDim.x) < tiles.count()) barrier_arrive(kMultiply + 1 - group, kBoth);

    const End end(a.rows, a.numbers, a.scale, row, col + lane * kThreadColumns);
    decltype(end.load(0)) next[kRowsAhead];
    FORGE_UNROLL
    for (int n = 0; n < kRowsAhead; ++n) next[n] = end.load(row_of_warp(n));
    wgmma_wait<0>();
    ring.release(turn * tiles.steps + tiles.steps - 1);
    FORGE_UNROLL
    for (int box = 0; box < kBoxes; ++box) wgmma_registers(g[box]);
    take_rows(end, g, next, strip);
  }
}

// A block. hopper.cu launches it on sm_90 alone; what is compiled for that without its own features ("a") has no wgmma,
// and an update that silently did nothing would be worse than one that stops.
template <class End>
FORGE_DEVICE void run(const HopperArguments<End>& arguments, std::byte* shared) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const Ring ring(shared);
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  // The same in all lanes, as the compiler sees by the shuffle: wgmma is not for threads that diverge.
  const int group = static_cast<int>(__shfl_sync(~0u, threadIdx.x / kGroupThreads, 0));
  if (group == 0) {
    decrease_registers<kLoaderRegisters>();
    if (threadIdx.x == 0) load_tiles(arguments, ring);
  } else {
    increase_registers<kMultiplierRegisters>();
    multiply_and_take(arguments, ring, group - 1);
  }
#else
  __trap();
#endif
}

}  // namespace hopper

// Blocks: any number up to that of the tiles, which they take in turn.
template <class Operation>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    update_tiles_on_hopper(FORGE_PARAMETER(HopperArguments<RowUpdate<Operation>>) arguments) {
  FORGE_DYNAMIC_SHARED(std::byte, operands);
  if (is_skipped(arguments.numbers)) return;
  hopper::run(arguments, operands);
}

static __global__ void __launch_bounds__(hopper::kThreads, 1)
    store_tiles_on_hopper(FORGE_PARAMETER(HopperArguments<RowStore>) arguments) {
  FORGE_DYNAMIC_SHARED(std::byte, operands);
  hopper::run(arguments, operands);
}

}  // namespace forge::cuda
