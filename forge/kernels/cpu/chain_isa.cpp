// The chain half: packing and the matrix-product micro-kernel by itself. It knows no rule.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "forge/base/widen.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"

HWY_BEFORE_NAMESPACE();
#include "forge/kernels/cpu/lanes.h"
// Behind lanes.h.
#include "forge/kernels/cpu/multiply_tile.h"

namespace forge::cpu {
namespace HWY_NAMESPACE {
namespace {

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

void multiply(const Tile& tile) {
  multiply_tile(tile, [] {});
}

template <class T>
void add_row_typed(const T* HWY_RESTRICT x, float scale, float* HWY_RESTRICT strip, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) strip[j] = __builtin_fmaf(scale, to_float(x[j]), strip[j]);
}

void add_row(const void* x, DType dtype, float scale, float* strip, std::int64_t n) {
  with_dtype(dtype, [&]<class T>(Tag<T>) { add_row_typed(static_cast<const T*>(x), scale, strip, n); });
}

}  // namespace

constexpr ChainHalf kChainHalf = {kTileRows, kTileCols, pack<kTileRows>, pack<kTileCols>, multiply, add_row};

}  // namespace HWY_NAMESPACE

extern const ChainHalf FORGE_ISA(chain);
const ChainHalf FORGE_ISA(chain) = HWY_NAMESPACE::kChainHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
