#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "forge/base/inline.h"

namespace forge {

// The value type that rules and formats are written over ("V"), for one element. kernels/cpu has the same words over
// vector registers. Every operation is one IEEE operation, rounded to nearest even; fma is fused.
struct Scalar {
  static constexpr int kLanes = 1;

  // 32-bit patterns of the lanes, for formats that round or split by integer arithmetic.
  struct Bits {
    std::uint32_t u;
    Bits() = default;
    FORGE_INLINE explicit Bits(std::uint32_t value) : u(value) {}
    // Only the upper halves are in memory: the lower are read as zero, and dropped.
    FORGE_INLINE static Bits load_upper16(const std::uint16_t* p) { return Bits(std::uint32_t{*p} << 16); }
    FORGE_INLINE void store_upper16(std::uint16_t* p) const { *p = static_cast<std::uint16_t>(u >> 16); }
    // 16 bits a lane, zero-extended.
    FORGE_INLINE static Bits load_lower16(const std::uint16_t* p) { return Bits(*p); }
    FORGE_INLINE void store_lower16(std::uint16_t* p) const { *p = static_cast<std::uint16_t>(u); }
    // Sign-extended.
    FORGE_INLINE static Bits load_int16(const std::int16_t* p) { return Bits(static_cast<std::uint32_t>(*p)); }
    FORGE_INLINE static Bits load_int8(const std::int8_t* p) { return Bits(static_cast<std::uint32_t>(*p)); }
    FORGE_INLINE static Bits load_uint8(const std::uint8_t* p) { return Bits(*p); }
    // The low bytes; the low halves are ints in [−128, 127], or in [0, 255].
    FORGE_INLINE void store_int8(std::int8_t* p) const { *p = static_cast<std::int8_t>(u); }
    FORGE_INLINE void store_uint8(std::uint8_t* p) const { *p = static_cast<std::uint8_t>(u); }
    // 32 bits as a factor of 64-bit products, of which it is the lower half; the upper one is anything.
    struct Factor {
      std::uint64_t u;
      Factor() = default;
      FORGE_INLINE explicit Factor(Bits b) : u(b.u) {}
      FORGE_INLINE explicit Factor(std::uint64_t product) : u(product) {}
      FORGE_INLINE friend Factor operator*(Factor a, std::uint32_t b) { return Factor((a.u & 0xFFFFFFFF) * b); }
      FORGE_INLINE friend Factor operator^(Factor a, Factor b) { return Factor(a.u ^ b.u); }
      FORGE_INLINE friend Factor operator^(Factor a, Bits b) { return Factor(a.u ^ b.u); }
      FORGE_INLINE Factor upper() const { return Factor(u >> 32); }
      FORGE_INLINE Bits lower() const { return Bits(static_cast<std::uint32_t>(u)); }
    };
    // A group of four words for each lane, the numbers 0, 1, 2, … in whatever order is stored most easily.
    FORGE_INLINE static Bits groups() { return Bits(0); }
    // p[8 · group + 2 · k], p[… + 1] ← the lower and the upper half of word k, groups in the order of their numbers.
    FORGE_INLINE static void store_groups(const Factor* words, std::uint16_t* p) {
      for (int k = 0; k < 4; ++k) {
        p[2 * k] = static_cast<std::uint16_t>(words[k].u);
        p[2 * k + 1] = static_cast<std::uint16_t>(words[k].u >> 16);
      }
    }
    FORGE_INLINE friend Bits operator+(Bits a, Bits b) { return Bits(a.u + b.u); }
    FORGE_INLINE friend Bits operator-(Bits a, Bits b) { return Bits(a.u - b.u); }
    FORGE_INLINE friend Bits operator&(Bits a, Bits b) { return Bits(a.u & b.u); }
    FORGE_INLINE void store(std::uint32_t* p) const { *p = u; }
    FORGE_INLINE friend Bits max(Bits a, Bits b) { return Bits(a.u > b.u ? a.u : b.u); }
    FORGE_INLINE friend std::uint32_t max_of_lanes(Bits a) { return a.u; }
    FORGE_INLINE friend Bits operator^(Bits a, Bits b) { return Bits(a.u ^ b.u); }
    FORGE_INLINE friend Bits operator|(Bits a, Bits b) { return Bits(a.u | b.u); }
    template <int n>
    FORGE_INLINE Bits shift_right() const {
      return Bits(u >> n);
    }
    template <int n>
    FORGE_INLINE Bits shift_left() const {
      return Bits(u << n);
    }
    // Of lanes as ints.
    template <int n>
    FORGE_INLINE Bits shift_right_signed() const {
      return Bits(static_cast<std::uint32_t>(static_cast<std::int32_t>(u) >> n));
    }
  };
  // Which lanes something holds for.
  using Mask = bool;
  // What is encoded at once: as many lanes as pack into one register of 16 bits each.
  using Wide = Scalar;

  float x;

  Scalar() = default;
  FORGE_INLINE explicit Scalar(float value) : x(value) {}
  FORGE_INLINE static Scalar load(const float* p) { return Scalar(*p); }
  // A Wide of as many V's, from x on.
  FORGE_INLINE static Scalar of(const Scalar* x) { return *x; }
  FORGE_INLINE void store(float* p) const { *p = x; }
  FORGE_INLINE static Scalar from_bits(Bits b) { return Scalar(std::bit_cast<float>(b.u)); }
  FORGE_INLINE Bits bits() const { return Bits(std::bit_cast<std::uint32_t>(x)); }
  // Lanes as ints.
  FORGE_INLINE static Scalar from_int(Bits b) { return Scalar(static_cast<float>(static_cast<std::int32_t>(b.u))); }

  FORGE_INLINE friend Scalar operator+(Scalar a, Scalar b) { return Scalar(a.x + b.x); }
  FORGE_INLINE friend Scalar operator-(Scalar a, Scalar b) { return Scalar(a.x - b.x); }
  FORGE_INLINE friend Scalar operator*(Scalar a, Scalar b) { return Scalar(a.x * b.x); }
  FORGE_INLINE friend Scalar operator/(Scalar a, Scalar b) { return Scalar(a.x / b.x); }
  FORGE_INLINE friend Scalar operator-(Scalar a) { return Scalar(-a.x); }
  // a·b + c with one rounding.
  FORGE_INLINE friend Scalar fma(Scalar a, Scalar b, Scalar c) { return Scalar(std::fma(a.x, b.x, c.x)); }
  FORGE_INLINE friend Scalar sqrt(Scalar a) { return Scalar(std::sqrt(a.x)); }
  FORGE_INLINE friend Scalar abs(Scalar a) { return Scalar(std::fabs(a.x)); }
  // Comparisons with a NaN are false; so of max and min it is the second operand's NaN that goes through.
  FORGE_INLINE friend Mask operator>(Scalar a, Scalar b) { return a.x > b.x; }
  FORGE_INLINE friend Mask operator<(Scalar a, Scalar b) { return a.x < b.x; }
  FORGE_INLINE friend Scalar max(Scalar a, Scalar b) { return a.x > b.x ? a : b; }
  FORGE_INLINE friend Scalar min(Scalar a, Scalar b) { return a.x < b.x ? a : b; }
  FORGE_INLINE friend Bits select(Mask mask, Bits yes, Bits no) { return mask ? yes : no; }
  FORGE_INLINE friend Scalar select(Mask mask, Scalar yes, Scalar no) { return mask ? yes : no; }
  FORGE_INLINE friend bool all_numbers(Scalar a) { return a.x == a.x; }
  FORGE_INLINE friend bool all_finite(Scalar a) { return std::fabs(a.x) < std::numeric_limits<float>::infinity(); }
  // where a is a number: `yes`; where it is NaN: `no`. And where it is finite.
  FORGE_INLINE friend Bits select_number(Scalar a, Bits yes, Bits no) { return a.x == a.x ? yes : no; }
  FORGE_INLINE friend Bits select_finite(Scalar a, Bits yes, Bits no) { return all_finite(a) ? yes : no; }
};

}  // namespace forge
