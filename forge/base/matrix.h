#pragma once

#include <cstdint>

#include "forge/base/dtype.h"

namespace forge {

// A row-major matrix that somebody else owns. `stride` is the distance between rows in elements, at least `cols`.
struct ConstMatrix {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  const void* at(std::int64_t r, std::int64_t c) const {
    return static_cast<const char*>(data) + static_cast<std::size_t>(r * stride + c) * size_of(dtype);
  }
  const void* row(std::int64_t r) const { return at(r, 0); }
};

struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  void* at(std::int64_t r, std::int64_t c) const {
    return static_cast<char*>(data) + static_cast<std::size_t>(r * stride + c) * size_of(dtype);
  }
  void* row(std::int64_t r) const { return at(r, 0); }
  operator ConstMatrix() const { return {data, dtype, rows, cols, stride}; }  // NOLINT: a view of the same numbers
};

// Throws Error, opened by `who` and naming `what`, where m is not (rows, cols), its stride is shorter than a row, its
// dtype is none of DType's, or it has elements but no data.
void check_matrix(const char* who, const char* what, const ConstMatrix& m, std::int64_t rows, std::int64_t cols);

}  // namespace forge
