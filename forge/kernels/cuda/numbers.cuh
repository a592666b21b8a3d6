#pragma once

#include <cstdint>

#include "forge/base/widen.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/cuda/stored.cuh"

// What kernels read of an update beside its matrices.
namespace forge::cuda {

FORGE_DEVICE bool is_skipped(const OnDevice& numbers) { return numbers.skip && *numbers.skip != 0; }

FORGE_DEVICE float scale_of(const OnDevice& numbers, float scale) { return numbers.scale ? *numbers.scale : scale; }

template <class Step>
FORGE_DEVICE Step step_of(const OnDevice& numbers, const Step& step) {
  return numbers.constants ? *static_cast<const Step*>(numbers.constants) : step;
}

// A matrix of numbers that is read.
struct OperandArguments {
  const void* data;
  std::int64_t stride;
  DType dtype;
  bool aligned;  // each row's columns come in fours that one access may take
  // They come in 16 bytes, which shared memory may have as they are: where fp32 is multiplied, and where halves are.
  bool copied_floats, copied_halves;
};
// scale: what the numbers are multiplied by.
inline OperandArguments arguments_of(const ConstMatrix& m, float scale = 1) {
  constexpr std::size_t kCopyBytes = 16;
  std::size_t size = size_of(m.dtype);
  auto in = [&](std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(m.data) % bytes == 0 &&
           static_cast<std::size_t>(m.stride) * size % bytes == 0;
  };
  bool copied = in(kCopyBytes) && scale == 1;
  return {m.data, m.stride, m.dtype, in(size * kThreadColumns), copied && m.dtype == DType::f32, copied && size == 2};
}

// A thread's four columns; zeros where they are not the matrix's.
FORGE_DEVICE Columns load_numbers(const OperandArguments& m, const Spot& at) {
  std::uint32_t words[kThreadColumns] = {};
  std::int64_t from = at.offset(m.stride);
  if (at.valid == 0) return Columns(0.f);
  if (m.dtype == DType::f32) {
    load_four(static_cast<const std::uint32_t*>(m.data) + from, at.valid, m.aligned, words);
    return Columns::of([&](int i) { return Scalar::from_bits(Scalar::Bits(words[i])); });
  }
  load_four(static_cast<const std::uint16_t*>(m.data) + from, at.valid, m.aligned, words);
  return Columns::of([&](int i) {
    auto bits = static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16));
    return Scalar(m.dtype == DType::bf16 ? to_float(BFloat16{bits}) : to_float(Float16{bits}));
  });
}

}  // namespace forge::cuda
