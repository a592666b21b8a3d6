// The chain half: packing and the matrix-product micro-kernel. It knows no rule.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "forge/base/widen.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"

HWY_BEFORE_NAMESPACE();
#include "forge/kernels/cpu/lanes.h"

namespace forge::cpu {
namespace HWY_NAMESPACE {
namespace {

// The tile in registers. AVX2 has 16: 6 × 2 accumulators, 2 of B, 1 broadcast of A. AVX-512 and NEON have 32:
// 12 × 2 accumulators, 2, 1. Either keeps 12 or more independent chains: 2 FMA ports × 4 cycles of latency need 8.
constexpr int kRows = HWY_TARGET == HWY_AVX2 ? 6 : 12;
constexpr int kVectors = 2;
constexpr int kCols = kVectors * Lanes::kLanes;

template <int kWidth, class T>
HWY_INLINE void pack_segment(const T* from, float scale, int n, float* to) {
  for (int i = 0; i < n; ++i) to[i] = scale * to_float(from[i]);
  for (int i = n; i < kWidth; ++i) to[i] = 0;
}

template <int kWidth, class T>
void pack_typed(const ConstMatrix& m, float scale, std::int64_t col, std::int64_t cols, float* out,
                std::int64_t panel_stride) {
  for (std::int64_t t = 0; t < m.rows; ++t) {
    const T* from = static_cast<const T*>(m.row(t)) + col;
    float* to = out + t * kWidth;
    std::int64_t c = 0;
    for (; c + kWidth <= cols; c += kWidth, to += panel_stride) pack_segment<kWidth>(from + c, scale, kWidth, to);
    if (c < cols) pack_segment<kWidth>(from + c, scale, static_cast<int>(cols - c), to);
  }
}

template <int kWidth>
void pack(const ConstMatrix& m, float scale, std::int64_t col, std::int64_t cols, float* out,
          std::int64_t panel_stride) {
  with_dtype(m.dtype, [&]<class T>(Tag<T>) { pack_typed<kWidth, T>(m, scale, col, cols, out, panel_stride); });
}

// One tile, `tokens` steps of every chain.
HWY_NOINLINE void multiply_tile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, std::int64_t tokens,
                                bool fresh, float* HWY_RESTRICT c, std::int64_t stride) {
  Lanes sum[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = fresh ? Lanes(-0.0f) : Lanes::load(c + r * stride + v * Lanes::kLanes);
  for (std::int64_t t = 0; t < tokens; ++t) {
    Lanes x[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) x[v] = Lanes::load(b + v * Lanes::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      Lanes dy(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(dy, x[v], sum[r][v]);
    }
    a += kRows;
    b += kCols;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[r][v].store(c + r * stride + v * Lanes::kLanes);
}

void multiply(const StripProduct& p, FunctionRef<void()> pause) {
  std::int64_t tiles = tiles_between_pauses(std::min(p.K, kTokenBlock));
  for (std::int64_t t = 0; t < p.K; t += kTokenBlock) {
    std::int64_t tokens = std::min(kTokenBlock, p.K - t), until_pause = tiles;
    for (std::int64_t j = 0; j < p.col_panels; ++j)
      for (std::int64_t i = 0; i < p.row_panels; ++i) {
        multiply_tile(p.a + i * p.a_panel + t * kRows, p.b + j * p.b_panel + t * kCols, tokens, p.fresh && t == 0,
                      p.strip + i * kRows * p.stride + j * kCols, p.stride);
        if (--until_pause == 0) {
          pause();
          until_pause = tiles;
        }
      }
  }
}

template <class T>
void add_row_typed(const T* HWY_RESTRICT x, float scale, float* HWY_RESTRICT strip, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) strip[j] = __builtin_fmaf(scale, to_float(x[j]), strip[j]);
}

void add_row(const void* x, DType dtype, float scale, float* strip, std::int64_t n) {
  with_dtype(dtype, [&]<class T>(Tag<T>) { add_row_typed(static_cast<const T*>(x), scale, strip, n); });
}

}  // namespace

constexpr ChainHalf kChainHalf = {kRows, kCols, pack<kRows>, pack<kCols>, multiply, add_row};

}  // namespace HWY_NAMESPACE

extern const ChainHalf FORGE_ISA(chain);
const ChainHalf FORGE_ISA(chain) = HWY_NAMESPACE::kChainHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
