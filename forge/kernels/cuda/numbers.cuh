#pragma once

#include <cstdint>

#include "forge/base/widen.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/cuda/stored.cuh"

// What kernels read of an update beside its matrices.
namespace forge::cuda {

FORGE_DEVICE bool is_skipped(const OnDevice& numbers) { return numbers.found_inf && *numbers.found_inf != 0; }

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
};
inline OperandArguments arguments_of(const ConstMatrix& m) {
  std::size_t four = size_of(m.dtype) * kThreadColumns;
  return {m.data, m.stride, m.dtype,
          reinterpret_cast<std::uintptr_t>(m.data) % four == 0 && m.stride % kThreadColumns == 0};
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
