#pragma once

#include <cstddef>
#include <cstdint>

#include "forge/base/error.h"

namespace forge {

// Element types of matrices that kernels read or write.
enum class DType : std::uint8_t { f32, bf16 };

// One bfloat16 number: the upper 16 bits of an fp32.
struct BFloat16 {
  std::uint16_t bits;
};

constexpr std::size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }
constexpr const char* name_of(DType dtype) { return dtype == DType::f32 ? "fp32" : "bf16"; }

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<float>) or f(Tag<BFloat16>): the one place where an element type becomes a C++ type.
template <class F>
decltype(auto) with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(Tag<float>{});
    case DType::bf16:
      return f(Tag<BFloat16>{});
  }
  fail("dtype ", static_cast<int>(dtype), " is not known");
}

}  // namespace forge
