#pragma once

// The micro-kernel of the chain. Included inside the target region, behind lanes.h.
namespace forge::cpu {
namespace HWY_NAMESPACE {

// The tile in registers. AVX2 has 16: 6 × 2 accumulators, 2 of B, 1 broadcast of A. AVX-512 and NEON have 32, of which
// a rule beside the tile wants some. Either keeps 12 or more independent chains: 2 FMA ports × 4 cycles of latency
// need 8.
constexpr int kTileRows = HWY_TARGET == HWY_AVX2 ? kTileRowsOf16 : kTileRowsOf32;
constexpr int kTileVectors = 2;
constexpr int kTileCols = kTileVectors * Lanes::kLanes;

// Steps of the chain between two vectors of a rule, 0 for none: 48 multiply-adds take some 48 cycles of AVX-512, the
// divider 20 for AdamW's root and quotient. Measured, Zen 4, AdamW's step with 64 tokens: 12.9 ms with 8 rows and 3
// tokens, 13.0 with 2, 13.2 with 6 rows and 4 tokens, 13.2 with 12 rows and 2; nothing between: 14.0. Of AVX2's
// registers a rule would send the accumulators to memory and back: 16.9 ms with 4 tokens, 14.4 with nothing between.
constexpr int kStepsBetween = HWY_TARGET == HWY_AVX2 ? 0 : 3;

// Whether the instruction set may know pairs of bf16; the machine is asked in chain_isa.cpp.
constexpr bool kMayHavePairs = HWY_TARGET == HWY_AVX3;

// The next step of a chain: a token's, or two.
template <bool kPairs, class V>
HWY_INLINE V next_step(V dy, V x, V sum) {
  if constexpr (kPairs)
    return V::fma_pairs(dy, x, sum);
  else
    return fma(dy, x, sum);
}

// Runs the tile's chains. Calls `between` now and then, which may do a little of something else: what waits for the
// divider or for memory there leaves the multipliers to the chain, as long as the processor sees both at a time.
template <bool kPairs, class Between>
HWY_INLINE void multiply_tile_of(const Tile& tile, const Between& between) {
  Lanes sum[kTileRows][kTileVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v)
      sum[r][v] = tile.fresh ? Lanes(-0.0f) : Lanes::load(tile.c + r * tile.stride + v * Lanes::kLanes);
  const float *HWY_RESTRICT a = tile.a, *HWY_RESTRICT b = tile.b;
  auto step = [&]() __attribute__((always_inline)) {
    Lanes x[kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) x[v] = Lanes::load(b + v * Lanes::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      Lanes dy(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) sum[r][v] = next_step<kPairs>(dy, x[v], sum[r][v]);
    }
    a += kTileRows;
    b += kTileCols;
  };
  std::int64_t t = 0;
  if constexpr (kStepsBetween > 0)
    for (; t + kStepsBetween <= tile.steps; t += kStepsBetween) {
#pragma GCC unroll 3
      for (int k = 0; k < kStepsBetween; ++k) step();
      between();
    }
  for (; t < tile.steps; ++t) step();
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) sum[r][v].store(tile.c + r * tile.stride + v * Lanes::kLanes);
}

template <class Between>
HWY_INLINE void multiply_tile(const Tile& tile, const Between& between) {
  if constexpr (kMayHavePairs)
    if (tile.pairs) return multiply_tile_of<true>(tile, between);
  multiply_tile_of<false>(tile, between);
}

// What a RuleLoop runs beside.
struct TileBeside {
  template <class Between>
  static HWY_INLINE void run(const Tile& tile, const Between& between) {
    multiply_tile(tile, between);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace forge::cpu
