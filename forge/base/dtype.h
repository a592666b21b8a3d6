#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "forge/base/error.h"

namespace forge {

// Element types of matrices that kernels read or write. The first three are numbers, which an operand may be of; the
// others are the parts that a format stores numbers in (formats/).
enum class DType : std::uint8_t { f32, bf16, f16, i16, i8, u8, f8 };

// One bfloat16 number: the upper 16 bits of an fp32.
struct BFloat16 {
  std::uint16_t bits;
};

// One IEEE half: sign, 5 bits of exponent, 10 of fraction.
struct Float16 {
  std::uint16_t bits;
};

constexpr const char* kDTypeNames[] = {"fp32", "bf16", "fp16", "int16", "int8", "uint8", "fp8"};
constexpr std::size_t kDTypeSizes[] = {4, 2, 2, 2, 1, 1, 1};

constexpr bool is_known(DType dtype) { return static_cast<std::size_t>(dtype) < std::size(kDTypeNames); }
constexpr const char* name_of(DType dtype) { return kDTypeNames[static_cast<std::size_t>(dtype)]; }
constexpr std::size_t size_of(DType dtype) { return kDTypeSizes[static_cast<std::size_t>(dtype)]; }
constexpr bool is_number(DType dtype) { return dtype <= DType::f16; }

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<float>), f(Tag<BFloat16>) or f(Tag<Float16>): the one place where an element type becomes a C++ type.
template <class F>
decltype(auto) with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(Tag<float>{});
    case DType::bf16:
      return f(Tag<BFloat16>{});
    case DType::f16:
      return f(Tag<Float16>{});
    default:
      fail("dtype ", static_cast<int>(dtype), " is no type of numbers");
  }
}

}  // namespace forge
