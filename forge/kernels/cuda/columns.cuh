#pragma once

#include <cstdint>

#include "forge/base/inline.h"
#include "forge/base/scalar.h"
#include "forge/formats/format.h"
#include "forge/kernels/cuda/device.cuh"

namespace forge::cuda {

// 16 bytes of fp32, the widest access of a thread.
constexpr int kThreadColumns = 4;
constexpr int kBlockThreads = static_cast<int>(kBlockColumns) / kThreadColumns;

// The value type of rules and formats (base/scalar.h has the words) over a block of 32 columns that 8 neighbouring
// threads of a warp hold together, 4 columns each. A pointer that a word gets is a thread's own: to its 4 columns, in
// registers. Only max_of_lanes speaks to the other threads, so all lanes of the warp have to come there.
struct Columns {
  static constexpr int kLanes = static_cast<int>(kBlockColumns);
  using Wide = Columns;

  // Calls f(i) for each column of the thread.
  template <class F>
  FORGE_DEVICE static void each(F&& f) {
    FORGE_UNROLL
    for (int i = 0; i < kThreadColumns; ++i) f(i);
  }

  struct Bits {
    using One = Scalar::Bits;
    One u[kThreadColumns];

    Bits() = default;
    FORGE_DEVICE explicit Bits(std::uint32_t value) {
      each([&](int i) { u[i] = One(value); });
    }
    // Of f(i) for each column.
    template <class F>
    FORGE_DEVICE static Bits of(F&& f) {
      Bits b;
      each([&](int i) { b.u[i] = f(i); });
      return b;
    }

    FORGE_DEVICE static Bits load_upper16(const std::uint16_t* p) {
      return of([&](int i) { return i % 2 ? One(word(p, i / 2) & 0xFFFF0000) : One(word(p, i / 2) << 16); });
    }
    FORGE_DEVICE static Bits load_lower16(const std::uint16_t* p) {
      return of([&](int i) { return One(word(p, i / 2) >> (16 * (i % 2)) & 0xFFFF); });
    }
    FORGE_DEVICE static Bits load_int16(const std::int16_t* p) {
      return load_lower16(reinterpret_cast<const std::uint16_t*>(p)).template sign_extended<16>();
    }
    FORGE_DEVICE static Bits load_uint8(const std::uint8_t* p) {
      return of([&](int i) { return One(word(p, 0) >> (8 * i) & 0xFF); });
    }
    FORGE_DEVICE static Bits load_int8(const std::int8_t* p) {
      return load_uint8(reinterpret_cast<const std::uint8_t*>(p)).template sign_extended<24>();
    }
    FORGE_DEVICE void store_upper16(std::uint16_t* p) const {
      each_word(p, [&](int k) { return u[2 * k].u >> 16 | (u[2 * k + 1].u & 0xFFFF0000); });
    }
    FORGE_DEVICE void store_lower16(std::uint16_t* p) const {
      each_word(p, [&](int k) { return (u[2 * k].u & 0xFFFF) | u[2 * k + 1].u << 16; });
    }
    FORGE_DEVICE void store_uint8(std::uint8_t* p) const {
      *reinterpret_cast<std::uint32_t*>(p) =
          (u[0].u & 0xFF) | (u[1].u & 0xFF) << 8 | (u[2].u & 0xFF) << 16 | u[3].u << 24;
    }
    FORGE_DEVICE void store_int8(std::int8_t* p) const { store_uint8(reinterpret_cast<std::uint8_t*>(p)); }
    FORGE_DEVICE void store(std::uint32_t* p) const {
      each([&](int i) { p[i] = u[i].u; });
    }

    FORGE_DEVICE friend Bits operator+(Bits a, Bits b) {
      return of([&](int i) { return a.u[i] + b.u[i]; });
    }
    FORGE_DEVICE friend Bits operator-(Bits a, Bits b) {
      return of([&](int i) { return a.u[i] - b.u[i]; });
    }
    FORGE_DEVICE friend Bits operator&(Bits a, Bits b) {
      return of([&](int i) { return a.u[i] & b.u[i]; });
    }
    FORGE_DEVICE friend Bits operator|(Bits a, Bits b) {
      return of([&](int i) { return a.u[i] | b.u[i]; });
    }
    FORGE_DEVICE friend Bits operator^(Bits a, Bits b) {
      return of([&](int i) { return a.u[i] ^ b.u[i]; });
    }
    FORGE_DEVICE friend Bits max(Bits a, Bits b) {
      return of([&](int i) { return max(a.u[i], b.u[i]); });
    }
    // Of the whole block.
    FORGE_DEVICE friend std::uint32_t max_of_lanes(Bits a) {
      std::uint32_t most = max(max(a.u[0], a.u[1]), max(a.u[2], a.u[3])).u;
      FORGE_UNROLL
      for (int lanes = kBlockThreads / 2; lanes > 0; lanes /= 2) {
        std::uint32_t other = __shfl_xor_sync(~0u, most, lanes);
        most = most > other ? most : other;
      }
      return most;
    }
    template <int n>
    FORGE_DEVICE Bits shift_right() const {
      return of([&](int i) { return u[i].template shift_right<n>(); });
    }
    template <int n>
    FORGE_DEVICE Bits shift_left() const {
      return of([&](int i) { return u[i].template shift_left<n>(); });
    }
    template <int n>
    FORGE_DEVICE Bits shift_right_signed() const {
      return of([&](int i) { return u[i].template shift_right_signed<n>(); });
    }

   private:
    FORGE_DEVICE static std::uint32_t word(const void* p, int k) { return static_cast<const std::uint32_t*>(p)[k]; }
    template <class F>
    FORGE_DEVICE static void each_word(std::uint16_t* p, F&& f) {
      auto* words = reinterpret_cast<std::uint32_t*>(p);
      words[0] = f(0);
      words[1] = f(1);
    }
    // From 32 − n bits.
    template <int n>
    FORGE_DEVICE Bits sign_extended() const {
      return shift_left<n>().template shift_right_signed<n>();
    }
  };
  struct Mask {
    Scalar::Mask of[kThreadColumns];
  };

  Scalar x[kThreadColumns];

  Columns() = default;
  FORGE_DEVICE explicit Columns(float value) {
    each([&](int i) { x[i] = Scalar(value); });
  }
  template <class F>
  FORGE_DEVICE static Columns of(F&& f) {
    Columns c;
    each([&](int i) { c.x[i] = f(i); });
    return c;
  }
  FORGE_DEVICE static Columns load(const float* p) {
    return of([&](int i) { return Scalar(p[i]); });
  }
  FORGE_DEVICE void store(float* p) const {
    each([&](int i) { p[i] = x[i].x; });
  }
  FORGE_DEVICE static Columns from_bits(Bits b) {
    return of([&](int i) { return Scalar::from_bits(b.u[i]); });
  }
  FORGE_DEVICE Bits bits() const {
    return Bits::of([&](int i) { return x[i].bits(); });
  }
  FORGE_DEVICE static Columns from_int(Bits b) {
    return of([&](int i) { return Scalar::from_int(b.u[i]); });
  }

  FORGE_DEVICE friend Columns operator+(Columns a, Columns b) {
    return of([&](int i) { return a.x[i] + b.x[i]; });
  }
  FORGE_DEVICE friend Columns operator-(Columns a, Columns b) {
    return of([&](int i) { return a.x[i] - b.x[i]; });
  }
  FORGE_DEVICE friend Columns operator*(Columns a, Columns b) {
    return of([&](int i) { return a.x[i] * b.x[i]; });
  }
  FORGE_DEVICE friend Columns operator/(Columns a, Columns b) {
    return of([&](int i) { return a.x[i] / b.x[i]; });
  }
  FORGE_DEVICE friend Columns operator-(Columns a) {
    return of([&](int i) { return -a.x[i]; });
  }
  FORGE_DEVICE friend Columns fma(Columns a, Columns b, Columns c) {
    return of([&](int i) { return fma(a.x[i], b.x[i], c.x[i]); });
  }
  FORGE_DEVICE friend Columns sqrt(Columns a) {
    return of([&](int i) { return sqrt(a.x[i]); });
  }
  FORGE_DEVICE friend Columns abs(Columns a) {
    return of([&](int i) { return abs(a.x[i]); });
  }
  FORGE_DEVICE friend Mask operator>(Columns a, Columns b) {
    Mask m;
    each([&](int i) { m.of[i] = a.x[i] > b.x[i]; });
    return m;
  }
  FORGE_DEVICE friend Mask operator<(Columns a, Columns b) { return b > a; }
  FORGE_DEVICE friend Columns max(Columns a, Columns b) {
    return of([&](int i) { return max(a.x[i], b.x[i]); });
  }
  FORGE_DEVICE friend Columns min(Columns a, Columns b) {
    return of([&](int i) { return min(a.x[i], b.x[i]); });
  }
  FORGE_DEVICE friend Bits select(Mask mask, Bits yes, Bits no) {
    return Bits::of([&](int i) { return select(mask.of[i], yes.u[i], no.u[i]); });
  }
  FORGE_DEVICE friend Columns select(Mask mask, Columns yes, Columns no) {
    return of([&](int i) { return select(mask.of[i], yes.x[i], no.x[i]); });
  }
  // Asked for a branch round a select, which costs a GPU more than the select.
  FORGE_DEVICE friend bool all_numbers(Columns) { return false; }
  FORGE_DEVICE friend bool all_finite(Columns) { return false; }
  FORGE_DEVICE friend Bits select_number(Columns a, Bits yes, Bits no) {
    return Bits::of([&](int i) { return select_number(a.x[i], yes.u[i], no.u[i]); });
  }
  FORGE_DEVICE friend Bits select_finite(Columns a, Bits yes, Bits no) {
    return Bits::of([&](int i) { return select_finite(a.x[i], yes.u[i], no.u[i]); });
  }
};

}  // namespace forge::cuda
