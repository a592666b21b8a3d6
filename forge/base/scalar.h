#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "forge/base/inline.h"

namespace forge {

// The value type that rules and formats are written over ("V"), for one element. kernels/cpu has the same words over
// vector registers. Every operation is one IEEE operation, rounded to nearest even; fma is fused.
struct Scalar {
  static constexpr int kLanes = 1;

  // 32-bit patterns of the lanes, for formats that round or split by integer arithmetic.
  struct Bits {
    std::uint32_t u;
    FORGE_INLINE explicit Bits(std::uint32_t value) : u(value) {}
    // Only the upper halves are in memory: the lower are read as zero, and dropped.
    FORGE_INLINE static Bits load_upper16(const std::uint16_t* p) { return Bits(std::uint32_t{*p} << 16); }
    FORGE_INLINE void store_upper16(std::uint16_t* p) const { *p = static_cast<std::uint16_t>(u >> 16); }
    FORGE_INLINE friend Bits operator+(Bits a, Bits b) { return Bits(a.u + b.u); }
    FORGE_INLINE friend Bits operator&(Bits a, Bits b) { return Bits(a.u & b.u); }
    FORGE_INLINE friend Bits operator|(Bits a, Bits b) { return Bits(a.u | b.u); }
    template <int n>
    FORGE_INLINE Bits shift_right() const {
      return Bits(u >> n);
    }
  };

  float x;

  Scalar() = default;
  FORGE_INLINE explicit Scalar(float value) : x(value) {}
  FORGE_INLINE static Scalar load(const float* p) { return Scalar(*p); }
  FORGE_INLINE void store(float* p) const { *p = x; }
  FORGE_INLINE static Scalar from_bits(Bits b) { return Scalar(std::bit_cast<float>(b.u)); }
  FORGE_INLINE Bits bits() const { return Bits(std::bit_cast<std::uint32_t>(x)); }

  FORGE_INLINE friend Scalar operator+(Scalar a, Scalar b) { return Scalar(a.x + b.x); }
  FORGE_INLINE friend Scalar operator-(Scalar a, Scalar b) { return Scalar(a.x - b.x); }
  FORGE_INLINE friend Scalar operator*(Scalar a, Scalar b) { return Scalar(a.x * b.x); }
  FORGE_INLINE friend Scalar operator/(Scalar a, Scalar b) { return Scalar(a.x / b.x); }
  FORGE_INLINE friend Scalar operator-(Scalar a) { return Scalar(-a.x); }
  // a·b + c with one rounding.
  FORGE_INLINE friend Scalar fma(Scalar a, Scalar b, Scalar c) { return Scalar(std::fma(a.x, b.x, c.x)); }
  FORGE_INLINE friend Scalar sqrt(Scalar a) { return Scalar(std::sqrt(a.x)); }
  FORGE_INLINE friend bool all_numbers(Scalar a) { return a.x == a.x; }
  // where a is a number: `yes`; where it is NaN: `no`.
  FORGE_INLINE friend Bits select_number(Scalar a, Bits yes, Bits no) { return a.x == a.x ? yes : no; }
};

}  // namespace forge
