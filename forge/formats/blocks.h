#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "forge/base/inline.h"
#include "forge/base/scalar.h"
#include "forge/base/sign.h"
#include "forge/formats/format.h"

namespace forge::formats {

// Codes of 8 bits in blocks of 32 columns of one row, each with a scale that its largest magnitude decides. The scale
// is a bf16, rounded up before anything is encoded with it, so that encoding and decoding use the same one and no code
// overflows. What is coded is the number or, where numbers are not negative (second moments), its square root: the
// root is what an update divides by, and it has half the binades.
//
// Updates round the codes up with the probability of what is cut off. To nearest, an average that decays by less than
// half a code a step would stand still: √v loses 0.0005 of itself when β₂ = 0.999, so that after 20,000 zero gradients
// v was still what it had been; so does any scale, and worse, of 8 bits.
//
// A block of zeros has scale 0 and codes 0, whatever the noise. A scale below kLeastScale is stored as 0, and its
// block's numbers with it. A block with a number that is not finite decodes to NaN: that is not lost.
//   Code::kLevels  the code of the largest magnitude, as a number
//   Code::decode<V>(codes, j) → numbers in units of the scale
//   Code::encode<V>(numbers, byte, codes, j)   byte: 8 random bits for each, or null to round to nearest
template <class Code, Sign kSign>
struct Blocks {
  // Far below what any update can see (its square is below fp32's least), and its inverse is finite.
  static constexpr float kLeastScale = 0x1p-100f;

  template <class V>
  FORGE_INLINE static V decode_at(const Segment& s, std::int64_t j) {
    const auto* scales = static_cast<const std::uint16_t*>(s.rest);
    V scale(std::bit_cast<float>(std::uint32_t{scales[j / kBlockColumns]} << 16));
    V y = scale * Code::template decode<V, kSign>(s.values, j);
    if constexpr (kSign == Sign::not_negative) y = y * y;
    return y;
  }

  template <class V>
  FORGE_INLINE static void decode(const Segment& s, std::int64_t n, float* x) {
    for (std::int64_t j = 0; j < n; j += V::kLanes) decode_at<V>(s, j).store(x + j);
  }

  template <class V>
  FORGE_INLINE static void encode(const float* x, std::int64_t n, const Segment& s) {
    using W = typename V::Wide;
    auto* scales = static_cast<std::uint16_t*>(s.rest);
    constexpr std::int64_t kAtOnce = kScales * kBlockColumns;
    for (std::int64_t from = 0; from < n; from += kAtOnce, scales += kScales) {
      float inverse[kScales] = {};
      store_scales<V>(x + from, std::min(kAtOnce, n - from), scales, inverse);
      for (std::int64_t b = 0, block = from; block < std::min(from + kAtOnce, n); ++b, block += kBlockColumns)
        for (std::int64_t j = block, end = block + columns<V>(n - block); j < end; j += W::kLanes)
          encode_with(inverse[b], W::load(x + j), s, j);
    }
  }

  template <class V>
  FORGE_INLINE static void encode_block(const V* x, const Segment& s, std::int64_t j) {
    using W = typename V::Wide;
    constexpr int kVectors = kBlockColumns / V::kLanes;
    typename V::Bits most = abs(x[0]).bits();
    for (int i = 1; i < kVectors; ++i) most = max(most, abs(x[i]).bits());
    Scalar::Bits scale = scale_of(Scalar(std::bit_cast<float>(max_of_lanes(most))));
    scale.store_upper16(static_cast<std::uint16_t*>(s.rest) + j / kBlockColumns);
    float inverse = has_codes(scale.u) ? 1 / std::bit_cast<float>(scale.u) : 0;
    for (int i = 0; i < kBlockColumns; i += W::kLanes) encode_with(inverse, W::of(x + i / V::kLanes), s, j + i);
  }

 private:
  static constexpr int kScales = 16;  // blocks whose scales are computed side by side: one register of any width

  // Of a block that has n columns and maybe more: vectors get whole blocks.
  template <class V>
  FORGE_INLINE static std::int64_t columns(std::int64_t n) {
    return V::kLanes > 1 ? kBlockColumns : std::min(kBlockColumns, n);
  }

  template <class W>
  FORGE_INLINE static void encode_with(float inverse, W x, const Segment& s, std::int64_t j) {
    using Bits = typename W::Bits;
    W y = inverse == 0 ? W(0.f) : coded(x) * W(inverse);  // not NaN · 0, nor −0
    if (s.noise) {
      Bits byte = random_byte<W>(s, j);
      Code::template encode<W, kSign>(y, &byte, s.values, j);
    } else {
      Code::template encode<W, kSign>(y, static_cast<Bits*>(nullptr), s.values, j);
    }
  }

  template <class W>
  FORGE_INLINE static typename W::Bits random_byte(const Segment& s, std::int64_t j) {
    auto bits = W::Bits::load_lower16(s.noise + j);
    if (s.noise_byte == 1) bits = bits.template shift_right<8>();
    return bits & typename W::Bits(0xFF);
  }

  template <class V>
  FORGE_INLINE static V coded(V x) {
    if constexpr (kSign == Sign::not_negative) return sqrt(x);
    return x;
  }

  // The scale of a block from its largest magnitude, rounded up; its lower half is 0.
  template <class V>
  FORGE_INLINE static typename V::Bits scale_of(V largest) {
    using Bits = typename V::Bits;
    // Divided: times a rounded inverse, levels · scale would mostly give the next larger scale, not the same.
    V scale = coded(largest) / V(Code::template kLevels<kSign>);
    Bits up = (scale.bits() + Bits(0xFFFF)) & Bits(0xFFFF0000);
    up = select(scale < V(kLeastScale), Bits(0), up);
    // Not finite: the scale is NaN, the codes are 0.
    return select_finite(scale, up, Bits(kNaN));
  }
  FORGE_INLINE static bool has_codes(std::uint32_t scale) { return scale != 0 && scale != kNaN; }

  // The scales of up to kScales blocks, and what numbers are multiplied by to be coded.
  template <class V>
  FORGE_INLINE static void store_scales(const float* x, std::int64_t n, std::uint16_t* scales, float* inverse) {
    using W = typename V::Wide;
    float largest[kScales] = {};
    std::int64_t blocks = 0;
    for (std::int64_t block = 0; block < n; block += kBlockColumns) {
      // Patterns of magnitudes are ordered as the numbers are, with infinity and NaN above all.
      typename W::Bits most(0);
      for (std::int64_t j = block, end = block + columns<V>(n - block); j < end; j += W::kLanes)
        most = max(most, abs(W::load(x + j)).bits());
      largest[blocks++] = std::bit_cast<float>(max_of_lanes(most));
    }
    std::uint32_t stored[kScales];
    for (std::int64_t b = 0; b < blocks; b += V::kLanes) {
      auto scale = scale_of(V::load(largest + b));
      (V(1.f) / V::from_bits(scale)).store(inverse + b);
      scale.store(stored + b);
    }
    for (std::int64_t b = 0; b < blocks; ++b) {
      scales[b] = static_cast<std::uint16_t>(stored[b] >> 16);
      if (!has_codes(stored[b])) inverse[b] = 0;
    }
  }
  static constexpr std::uint32_t kNaN = 0x7FC00000;
};

}  // namespace forge::formats
