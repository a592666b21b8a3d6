#pragma once

// The micro-kernel of the chain. Included inside the target region, behind lanes.h.
namespace forge::cpu {
namespace HWY_NAMESPACE {

// The tile in registers. AVX2 has 16: 6 × 2 accumulators, 2 of B, 1 broadcast of A. AVX-512 has 32, of which a rule
// beside the tile wants some; NEON too, and no rule beside. All keep 12 or more independent chains: 2 FMA ports × 4
// cycles of latency need 8.
constexpr int kTileRows = HWY_TARGET == HWY_AVX2   ? kTileRowsAvx2
                          : HWY_TARGET == HWY_AVX3 ? kTileRowsAvx512
                                                   : kTileRowsOther;
constexpr int kTileCols = kTileVectors * Lanes::kLanes;

// Steps of the chain between two vectors of a rule: 48 multiply-adds take some 48 cycles of AVX-512, the divider 20 for
// AdamW's root and quotient. Measured, Zen 4, AdamW's step with 64 tokens: 12.9 ms with 8 rows and 3 steps, 13.0 with
// 2, 13.2 with 6 rows and 4 steps, 13.2 with 12 rows and 2. 0: they take turns, as with 6 rows took 14.0. Of AVX2's
// registers a rule would send the accumulators to memory and back: 16.9 ms with 4 steps, 14.4 in turns. Nobody has
// measured NEON.
constexpr int kStepsBetween = HWY_TARGET == HWY_AVX3 ? 3 : 0;

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

// The chains of a tile, in registers.
template <bool kPairs>
class TileSums {
 public:
  HWY_INLINE explicit TileSums(const Tile& tile) : a_(tile.a), b_(tile.b) {
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v)
        sum_[r][v] = tile.fresh ? Lanes(-0.0f) : Lanes::load(tile.c + r * tile.stride + v * Lanes::kLanes);
  }

  HWY_INLINE void step() {
    Lanes x[kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) x[v] = Lanes::load(b_ + v * Lanes::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      Lanes dy(a_[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) sum_[r][v] = next_step<kPairs>(dy, x[v], sum_[r][v]);
    }
    a_ += kTileRows;
    b_ += kTileCols;
  }

  HWY_INLINE void store(const Tile& tile) const {
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) sum_[r][v].store(tile.c + r * tile.stride + v * Lanes::kLanes);
  }

 private:
  const float *HWY_RESTRICT a_, *HWY_RESTRICT b_;
  Lanes sum_[kTileRows][kTileVectors];
};

// Runs the tile's chains. Calls between() now and then, which may do a little of something else: what waits for the
// divider or for memory there leaves the multipliers to the chain, as long as the processor sees both at a time.
template <bool kPairs, class Between>
HWY_INLINE void multiply_tile_of(const Tile& tile, Between& between) {
  TileSums<kPairs> sums(tile);
  std::int64_t t = 0;
  if constexpr (kStepsBetween > 0)
    for (; t + kStepsBetween <= tile.steps; t += kStepsBetween) {
#pragma GCC unroll 3
      for (int k = 0; k < kStepsBetween; ++k) sums.step();
      between();
    }
  for (; t < tile.steps; ++t) sums.step();
  sums.store(tile);
}

template <class Between>
HWY_INLINE void multiply_tile(const Tile& tile, Between& between) {
  if constexpr (kMayHavePairs)
    if (tile.pairs) return multiply_tile_of<true>(tile, between);
  multiply_tile_of<false>(tile, between);
}

struct Nothing {
  HWY_INLINE void operator()() const {}
};

// What a RuleLoop runs beside itself; void where it takes no tile along.
struct TileBeside {
  template <class Between>
  static HWY_INLINE void run(const Tile& tile, Between& between) {
    multiply_tile(tile, between);
  }
};
using Beside = std::conditional_t<(kStepsBetween > 0), TileBeside, void>;

}  // namespace HWY_NAMESPACE
}  // namespace forge::cpu
