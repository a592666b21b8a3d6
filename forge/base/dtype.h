#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "forge/base/error.h"

namespace forge {

// Element types of matrices that kernels read or write. What weights and moments may be stored as is FormatList's to
// say (formats/list.h); an operand may be of any.
enum class DType : std::uint8_t { f32, bf16, f16 };

// One bfloat16 number: the upper 16 bits of an fp32.
struct BFloat16 {
  std::uint16_t bits;
};

// One IEEE half: sign, 5 bits of exponent, 10 of fraction.
struct Float16 {
  std::uint16_t bits;
};

constexpr const char* kDTypeNames[] = {"fp32", "bf16", "fp16"};

constexpr bool is_known(DType dtype) { return static_cast<std::size_t>(dtype) < std::size(kDTypeNames); }
constexpr const char* name_of(DType dtype) { return kDTypeNames[static_cast<std::size_t>(dtype)]; }
constexpr std::size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

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
  }
  fail("dtype ", static_cast<int>(dtype), " is not known");
}

}  // namespace forge
