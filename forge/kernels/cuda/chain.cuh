#pragma once

#include <cstdint>

#include "forge/kernels/cuda/numbers.cuh"
#include "forge/kernels/cuda/ptx/cp_async.cuh"

// A tile of G = Σ sᵢ · termᵢ by fused multiply-adds of fp32, each element one chain over the terms as they came and
// over their tokens in order, beginning at −0: the bits of Target::ref. sm_80 and later.
namespace forge::cuda {

// A block of 256 threads makes 128 × 128 elements, a thread 8 × 8 of them: 64 multiply-adds for 16 numbers read from
// shared memory, so the arithmetic units wait for nothing but themselves.
constexpr int kTile = 128;
constexpr int kChainThreads = 256;
constexpr int kThreadTile = 8;

// Tokens of a stage: of each operand, two times four columns a thread.
constexpr int kStageTokens = 16;
constexpr int kOperandFloats = kStageTokens * kTile;
constexpr int kStageFloats = 2 * kOperandFloats;
// One is computed on, the others land or are loaded; and together they hold a tile.
constexpr int kStages = 4;
constexpr int kChainShared = kStages * kStageFloats * static_cast<int>(sizeof(float));
static_assert(kChainShared == kTile * kTile * sizeof(float));
// Two blocks on a multiprocessor (128 KiB, 128 registers a thread): while one ends its tile, the other multiplies.
constexpr int kChainBlocks = 2;

enum class TermKind : std::uint8_t { outer, rows, dense };

struct TermArguments {
  TermKind kind;
  bool first_direct, second_direct;  // an operand that shared memory may take as it is: fp32 in fours, and not scaled
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

// The accumulators of a thread, and where they lie in the tile.
struct Fragment {
  float g[kThreadTile][kThreadTile];

  FORGE_DEVICE static int row() {  // of 8
    int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    return warp / 4 * 64 + lane / 4 * kThreadTile;
  }
  // Two times four, 16 apart, so that a quarter of a warp reads 16 bytes of each bank.
  FORGE_DEVICE static int col(int j) {
    int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
    return warp % 4 * 32 + lane % 4 * 4 + j / 4 * 16 + j % 4;
  }
  template <class F>
  FORGE_DEVICE void each(F&& f) {
    FORGE_UNROLL
    for (int i = 0; i < kThreadTile; ++i) {
      FORGE_UNROLL
      for (int j = 0; j < kThreadTile; ++j) f(i, j, g[i][j]);
    }
  }
};

// One operand of a product: columns [first, first + 128) of a matrix of tokens, a stage at a time.
struct OperandLoader {
  const OperandArguments& m;
  bool direct;
  float scale;
  int first, cols, tokens;

  // Where piece k of this thread lies in a stage.
  FORGE_DEVICE static int token(int k) { return static_cast<int>(threadIdx.x / 32) + k * (kChainThreads / 32); }
  FORGE_DEVICE static int col() { return static_cast<int>(threadIdx.x % 32) * kThreadColumns; }
  FORGE_DEVICE static float* place(float* stage, int k) { return stage + token(k) * kTile + col(); }

  // Zeros where there is nothing of the matrix. What is direct is there after the wait for its group. The rest is
  // widened and scaled on its way, for which the thread waits; the other block of the multiprocessor does not.
  FORGE_DEVICE void load(int from, float* stage) const {
    FORGE_UNROLL
    for (int k = 0; k < 2; ++k) {
      Spot at = spot_in(tokens, cols, from + token(k), first + col());
      if (direct) {
        const float* source = static_cast<const float*>(m.data) + (at.valid > 0 ? at.offset(m.stride) : 0);
        cp_async_16(place(stage, k), source, at.valid * static_cast<int>(sizeof(float)));
      } else {
        (Columns(scale) * load_numbers(m, at)).store(place(stage, k));
      }
    }
  }
};

FORGE_DEVICE void multiply_token(const float* a, const float* b, Fragment& tile) {
  float dy[kThreadTile], x[kThreadTile];
  FORGE_UNROLL
  for (int half = 0; half < 2; ++half) {
    float4 four = *reinterpret_cast<const float4*>(a + Fragment::row() + 4 * half);
    dy[4 * half] = four.x, dy[4 * half + 1] = four.y, dy[4 * half + 2] = four.z, dy[4 * half + 3] = four.w;
    four = *reinterpret_cast<const float4*>(b + Fragment::col(4 * half));
    x[4 * half] = four.x, x[4 * half + 1] = four.y, x[4 * half + 2] = four.z, x[4 * half + 3] = four.w;
  }
  tile.each([&](int i, int j, float& g) { g = std::fma(dy[i], x[j], g); });
}

FORGE_DEVICE void add_outer(const ChainArguments& all, const TermArguments& term, int row, int col, float* shared,
                            Fragment& tile) {
  OperandLoader dY = {term.first, term.first_direct, term.scale, row, all.out, term.tokens};
  OperandLoader X = {term.second, term.second_direct, 1.f, col, all.in, term.tokens};
  auto stage_of = [&](int step) { return shared + step % kStages * kStageFloats; };
  auto load = [&](int step) {
    dY.load(step * kStageTokens, stage_of(step));
    X.load(step * kStageTokens, stage_of(step) + kOperandFloats);
  };
  const int steps = (term.tokens - 1 + kStageTokens) / kStageTokens;
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
    if (step >= 0) {
      const float* a = stage_of(step);
      const float* b = a + kOperandFloats;
      // Not beyond the last token: a product of zeros would be added to a chain that is −0.
      const int left = term.tokens - step * kStageTokens;
      if (left >= kStageTokens) {
        FORGE_UNROLL
        for (int t = 0; t < kStageTokens; ++t) multiply_token(a + t * kTile, b + t * kTile, tile);
      } else {
        FORGE_NO_UNROLL
        for (int t = 0; t < left; ++t) multiply_token(a + t * kTile, b + t * kTile, tile);
      }
    }
  }
}

// The strip: a tile in shared memory, of which a warp takes whole rows, every eighth.
constexpr int kChainWarps = kChainThreads / 32;

// Through the strip, so that a warp reads whole rows.
FORGE_DEVICE void add_dense(const ChainArguments& all, const TermArguments& term, int row, int col, float* strip,
                            Fragment& tile) {
  const int warp = static_cast<int>(threadIdx.x / 32), c = static_cast<int>(threadIdx.x % 32) * kThreadColumns;
  __syncthreads();  // everyone has left what shared memory held before
  FORGE_NO_UNROLL
  for (int r = warp; r < kTile; r += kChainWarps)
    load_numbers(term.first, spot_in(all.out, all.in, row + r, col + c)).store(strip + r * kTile + c);
  __syncthreads();
  tile.each([&](int i, int j, float& g) {
    g = std::fma(term.scale, strip[(Fragment::row() + i) * kTile + Fragment::col(j)], g);
  });
}

FORGE_DEVICE void add_rows(const ChainArguments& all, const TermArguments& term, int row, int col, Fragment& tile) {
  FORGE_NO_UNROLL
  for (int t = 0; t < term.tokens; ++t) {
    std::int64_t place = term.index[t] - row - Fragment::row();
    if (place < 0 || place >= kThreadTile) continue;
    Columns left = load_numbers(term.first, spot_in(term.tokens, all.in, t, col + Fragment::col(0)));
    Columns right = load_numbers(term.first, spot_in(term.tokens, all.in, t, col + Fragment::col(kThreadColumns)));
    tile.each([&](int i, int j, float& g) {
      float x = j < kThreadColumns ? left.x[j % kThreadColumns].x : right.x[j % kThreadColumns].x;
      g = i == place ? std::fma(term.scale, x, g) : g;
    });
  }
}

// The tile from (row, col) on, before the overall scale. `shared`: kChainShared bytes.
FORGE_DEVICE void make_tile(const ChainArguments& all, int row, int col, float* shared, Fragment& tile) {
  tile.each([](int, int, float& g) { g = -0.f; });
  FORGE_NO_UNROLL
  for (int k = 0; k < all.terms; ++k) {
    const TermArguments& term = all.term[k];
    if (term.kind == TermKind::outer)
      add_outer(all, term, row, col, shared, tile);
    else if (term.kind == TermKind::rows)
      add_rows(all, term, row, col, tile);
    else
      add_dense(all, term, row, col, shared, tile);
  }
}

// strip ← the tile.
FORGE_DEVICE void store_tile(const Fragment& tile, float* strip) {
  __syncthreads();  // everyone has left what shared memory held before
  FORGE_UNROLL
  for (int i = 0; i < kThreadTile; ++i) {
    float* to = strip + (Fragment::row() + i) * kTile;
    const float* g = tile.g[i];
    *reinterpret_cast<float4*>(to + Fragment::col(0)) = make_float4(g[0], g[1], g[2], g[3]);
    *reinterpret_cast<float4*>(to + Fragment::col(4)) = make_float4(g[4], g[5], g[6], g[7]);
  }
  __syncthreads();
}

}  // namespace forge::cuda
