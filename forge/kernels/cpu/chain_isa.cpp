// The chain half: packing and the matrix-product micro-kernel by itself. It knows no rule.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "forge/base/widen.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"
#include "forge/kernels/float_environment.h"

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

// kBehind: the bits of the token that a last one alone lacks.
template <int kWidth, std::uint16_t kBehind>
void pack_pairs(const ConstMatrix& m, std::int64_t col, std::int64_t cols, float* out, std::int64_t panel_stride) {
  auto pack_segment = [](const std::uint16_t* upper, const std::uint16_t* lower, int n, float* to) {
    for (int i = 0; i < n; ++i) {
      std::uint32_t behind = lower ? lower[i] : kBehind;
      to[i] = std::bit_cast<float>(std::uint32_t{upper[i]} << 16 | behind);
    }
    for (int i = n; i < kWidth; ++i) to[i] = 0;
  };
  for (std::int64_t t = 0; t < m.rows; t += 2) {
    const auto* upper = static_cast<const std::uint16_t*>(m.row(t)) + col;
    const auto* lower = t + 1 < m.rows ? static_cast<const std::uint16_t*>(m.row(t + 1)) + col : nullptr;
    float* to = out + t / 2 * kWidth;
    for (std::int64_t c = 0; c < cols; c += kWidth, to += panel_stride)
      pack_segment(upper + c, lower ? lower + c : nullptr, static_cast<int>(std::min<std::int64_t>(kWidth, cols - c)),
                   to);
  }
}

#if HWY_TARGET == HWY_AVX3
// Whether a pair is two steps of a chain, each rounded once, signs of zeros included: on numbers that meet no denormal.
bool pairs_are_chains() {
  FloatEnvironment ieee;
  std::uint64_t state = 1;
  auto random = [&](std::uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's
    return static_cast<std::uint32_t>(state >> 33) % below;
  };
  auto bf16 = [&]() -> std::uint32_t {
    std::uint32_t sign = random(2) << 15;
    return random(8) ? sign | (112 + random(32)) << 7 | random(128) : sign;
  };
  auto number = [](std::uint32_t bits) { return std::bit_cast<float>(bits << 16); };
  for (int i = 0; i < 256; ++i) {
    float a[Lanes::kLanes], b[Lanes::kLanes], c[Lanes::kLanes], expected[Lanes::kLanes];
    for (int k = 0; k < Lanes::kLanes; ++k) {
      std::uint32_t x1 = bf16(), x0 = bf16(), y1 = bf16(), y0 = bf16();
      a[k] = std::bit_cast<float>(x1 << 16 | x0);
      b[k] = std::bit_cast<float>(y1 << 16 | y0);
      c[k] = random(4) ? number(bf16()) * number(bf16()) / 3 : number(random(2) << 15);
      expected[k] = __builtin_fmaf(number(x0), number(y0), __builtin_fmaf(number(x1), number(y1), c[k]));
    }
    Lanes::fma_pairs(Lanes::load(a), Lanes::load(b), Lanes::load(c)).store(c);
    if (std::memcmp(c, expected, sizeof c) != 0) return false;
  }
  return true;
}

bool has_pairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && pairs_are_chains();
  return has;
}
#else
bool has_pairs() { return false; }
#endif

void multiply(const Tile& tile) {
  Nothing nothing;
  multiply_tile(tile, nothing);
}

template <class T>
void add_row_typed(const T* HWY_RESTRICT x, float scale, float* HWY_RESTRICT strip, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) strip[j] = __builtin_fmaf(scale, to_float(x[j]), strip[j]);
}

void add_row(const void* x, DType dtype, float scale, float* strip, std::int64_t n) {
  with_dtype(dtype, [&]<class T>(Tag<T>) { add_row_typed(static_cast<const T*>(x), scale, strip, n); });
}

}  // namespace

constexpr ChainHalf kChainHalf = {
    kTileRows, kTileCols, pack<kTileRows>, pack<kTileCols>, pack_pairs<kTileRows, 0>, pack_pairs<kTileCols, 0x8000>,
    has_pairs, multiply,  add_row};

}  // namespace HWY_NAMESPACE

extern const ChainHalf FORGE_ISA(chain);
const ChainHalf FORGE_ISA(chain) = HWY_NAMESPACE::kChainHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
