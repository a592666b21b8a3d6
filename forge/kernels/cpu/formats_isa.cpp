// Formats over vector registers: from and to fp32. No rule, no matrix product. And sums of squares.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "forge/base/scalar.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"
#include "forge/kernels/norm_lanes.h"

HWY_BEFORE_NAMESPACE();
#include "forge/formats/list.h"
#include "forge/formats/philox.h"
#include "forge/kernels/cpu/lanes.h"

namespace forge::cpu {
namespace HWY_NAMESPACE {
namespace {

// Columns that are coded together at least: a block with its scale, and any register.
constexpr std::int64_t kUnit = std::max<std::int64_t>(kBlockColumns, LanePair::kLanes);

// The rest of a row, less than a unit, goes through a whole one on the stack, so that the arithmetic is the same and
// nothing beside the row is touched. Zeros fill it up: they change no scale.
struct WholeUnit {
  alignas(4) std::byte values[kUnit * sizeof(float)] = {}, rest[kUnit * sizeof(std::int16_t)] = {};
  std::uint16_t noise[kUnit] = {};
  std::size_t value_bytes, rest_bytes;

  HWY_INLINE WholeUnit(const SegmentLayout& layout, std::int64_t n)
      : value_bytes(static_cast<std::size_t>(n) * layout.value_bytes),
        rest_bytes(static_cast<std::size_t>((n + layout.columns_of_rest - 1) / layout.columns_of_rest) *
                   layout.rest_bytes) {}
  HWY_INLINE Segment segment(const Segment& of) { return {values, rest, of.noise ? noise : nullptr, of.noise_byte}; }
};

HWY_INLINE Segment advanced(const Segment& s, const SegmentLayout& layout, std::int64_t n) {
  return {static_cast<std::byte*>(s.values) + static_cast<std::size_t>(n) * layout.value_bytes,
          s.rest ? static_cast<std::byte*>(s.rest) +
                       static_cast<std::size_t>(n / layout.columns_of_rest) * layout.rest_bytes
                 : nullptr,
          s.noise ? s.noise + n : nullptr, s.noise_byte};
}

template <class F>
void decode(const Segment& s, const SegmentLayout& layout, std::int64_t n, float* x) {
  std::int64_t whole = n / kUnit * kUnit;
  F::template decode<Lanes>(s, whole, x);
  if (whole == n) return;
  Segment end = advanced(s, layout, whole);
  WholeUnit unit(layout, n - whole);
  float full[kUnit];
  std::memcpy(unit.values, end.values, unit.value_bytes);
  if (end.rest) std::memcpy(unit.rest, end.rest, unit.rest_bytes);
  F::template decode<Lanes>(unit.segment(s), kUnit, full);
  std::memcpy(x + whole, full, static_cast<std::size_t>(n - whole) * sizeof(float));
}

template <class F>
void encode(const float* x, const SegmentLayout& layout, std::int64_t n, const Segment& s) {
  std::int64_t whole = n / kUnit * kUnit;
  F::template encode<Lanes>(x, whole, s);
  if (whole == n) return;
  Segment end = advanced(s, layout, whole);
  WholeUnit unit(layout, n - whole);
  float full[kUnit] = {};
  std::memcpy(full, x + whole, static_cast<std::size_t>(n - whole) * sizeof(float));
  if (end.noise) std::memcpy(unit.noise, end.noise, static_cast<std::size_t>(n - whole) * sizeof(std::uint16_t));
  F::template encode<Lanes>(full, kUnit, unit.segment(s));
  std::memcpy(end.values, unit.values, unit.value_bytes);
  if (end.rest) std::memcpy(end.rest, unit.rest, unit.rest_bytes);
}

Codec find_codec(Format format, Sign sign) {
  Codec found = {};
  with_format(format, sign, [&]<class F>() { found = {decode<F>, encode<F>}; });
  return found;
}

// To kNormLanes sums over and over or, of columns, to one for each.
template <bool kOfColumns>
void add_squares(double* sums, const float* g, std::int64_t n, float scale) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  constexpr std::int64_t kStep = HWY_LANES(double);
  std::int64_t j = 0;
  for (; j + kNormLanes <= n; j += kNormLanes)
    for (std::int64_t k = 0; k < kNormLanes; k += kStep) {
      auto x = hn::PromoteTo(d, hn::Mul(hn::Set(half, scale), hn::LoadU(half, g + j + k)));
      double* sum = sums + (kOfColumns ? j : 0) + k;
      hn::StoreU(hn::MulAdd(x, x, hn::LoadU(d, sum)), d, sum);
    }
  for (std::int64_t k = kOfColumns ? j : 0; j < n; ++j, ++k) {
    double x = scale * g[j];
    sums[k] += x * x;
  }
}

}  // namespace

constexpr FormatHalf kFormatHalf = {find_codec, formats::fill_noise<Lanes>, add_squares<false>, add_squares<true>};

}  // namespace HWY_NAMESPACE

extern const FormatHalf FORGE_ISA(formats);
const FormatHalf FORGE_ISA(formats) = HWY_NAMESPACE::kFormatHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
