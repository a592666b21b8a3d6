#pragma once

#include <cstdint>

#include "forge/kernels/cuda/tile.cuh"

// A tile of G = Σ sᵢ · termᵢ by fused multiply-adds of fp32, each element one chain over the terms as they came and
// over their tokens in order, beginning at −0: the bits of Target::ref. sm_80 and later.
namespace forge::cuda {

// A thread makes 8 × 8 elements: 64 multiply-adds for 16 numbers read from shared memory, so the arithmetic units wait
// for nothing but themselves.
constexpr int kThreadTile = 8;

// Of each operand a thread brings two times four columns to a stage.
constexpr int kStageTokens = 16;
constexpr int kOperandFloats = kStageTokens * kTile;
static_assert(2 * kOperandFloats * sizeof(float) == kStageBytes);

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
  // Calls f(row, col, g) for each element, in the tile.
  template <class F>
  FORGE_DEVICE void each(F&& f) {
    each_own([&](int i, int j, float& x) { f(row() + i, col(j), x); });
  }
  template <class F>
  FORGE_DEVICE void each_own(F&& f) {
    FORGE_UNROLL
    for (int i = 0; i < kThreadTile; ++i) {
      FORGE_UNROLL
      for (int j = 0; j < kThreadTile; ++j) f(i, j, g[i][j]);
    }
  }
  FORGE_DEVICE void store(float* strip) const {
    FORGE_UNROLL
    for (int i = 0; i < kThreadTile; ++i) {
      FORGE_UNROLL
      for (int j = 0; j < kThreadTile; j += 4)
        *reinterpret_cast<float4*>(strip + strip_place(row() + i, col(j))) =
            make_float4(g[i][j], g[i][j + 1], g[i][j + 2], g[i][j + 3]);
    }
  }
};

// One operand of a product: columns [first, first + 128) of a matrix of tokens, a stage at a time.
struct OperandLoader {
  const OperandArguments& m;
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
      if (m.copied_floats) {
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
  tile.each_own([&](int i, int j, float& g) { g = std::fma(dy[i], x[j], g); });
}

FORGE_DEVICE void add_outer(const ChainArguments& all, const TermArguments& term, int row, int col, float* shared,
                            Fragment& tile) {
  OperandLoader dY = {term.first, term.scale, row, all.out, term.tokens};
  OperandLoader X = {term.second, 1.f, col, all.in, term.tokens};
  auto stage_of = [&](int step) { return shared + step % kStages * (2 * kOperandFloats); };
  auto load = [&](int step) {
    dY.load(step * kStageTokens, stage_of(step));
    X.load(step * kStageTokens, stage_of(step) + kOperandFloats);
  };
  pipeline((term.tokens - 1 + kStageTokens) / kStageTokens, load, [&](int step) {
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
  });
}

FORGE_DEVICE void add_rows(const ChainArguments& all, const TermArguments& term, int row, int col, Fragment& tile) {
  FORGE_NO_UNROLL
  for (int t = 0; t < term.tokens; ++t) {
    std::int64_t place = term.index[t] - row - Fragment::row();
    if (place < 0 || place >= kThreadTile) continue;
    Columns left = load_numbers(term.first, spot_in(term.tokens, all.in, t, col + Fragment::col(0)));
    Columns right = load_numbers(term.first, spot_in(term.tokens, all.in, t, col + Fragment::col(kThreadColumns)));
    tile.each_own([&](int i, int j, float& g) {
      float x = j < kThreadColumns ? left.x[j % kThreadColumns].x : right.x[j % kThreadColumns].x;
      g = i == place ? std::fma(term.scale, x, g) : g;
    });
  }
}

// Multiply-adds of fp32: any terms.
struct FfmaChain {
  using Tile = Fragment;

  // The tile from (row, col) on, before the overall scale. `shared`: kChainShared bytes.
  FORGE_DEVICE static void make(const ChainArguments& all, int row, int col, float* shared, Tile& tile) {
    tile.each_own([](int, int, float& g) { g = -0.f; });
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
};

}  // namespace forge::cuda
