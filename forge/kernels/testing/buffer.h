#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "forge/base/matrix.h"
#include "forge/base/scalar.h"
#include "forge/base/widen.h"
#include "forge/formats/bf16.h"
#include "forge/kernels/testing/float16.h"

namespace forge::testing {

constexpr std::byte kCanary{0xA5};

// A matrix that owns its numbers, with canaries before, behind and between its rows.
class Buffer {
 public:
  Buffer(std::int64_t rows, std::int64_t cols, DType dtype, std::int64_t padding = 3)
      : rows_(rows),
        cols_(cols),
        stride_(cols + padding),
        dtype_(dtype),
        bytes_(2 * kGuard + static_cast<std::size_t>(rows * stride_) * size_of(dtype), kCanary) {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) set(r, c, 0);
  }

  Matrix view() { return {bytes_.data() + kGuard, dtype_, rows_, cols_, stride_}; }
  ConstMatrix view() const { return const_cast<Buffer*>(this)->view(); }
  DType dtype() const { return dtype_; }
  const std::vector<std::byte>& bytes() const { return bytes_; }

  float at(std::int64_t r, std::int64_t c) const {
    return with_dtype(dtype_, [&]<class T>(Tag<T>) { return to_float(static_cast<const T*>(view().row(r))[c]); });
  }
  void set(std::int64_t r, std::int64_t c, float x) {
    void* row = view().row(r);
    if (dtype_ == DType::f32) static_cast<float*>(row)[c] = x;
    if (dtype_ == DType::bf16) formats::Bf16::encode(Scalar(x), static_cast<std::uint16_t*>(row) + c);
    if (dtype_ == DType::f16) static_cast<Float16*>(row)[c] = to_float16(x);
  }
  // Row by row from next().
  template <class Next>
  Buffer& fill(Next&& next) {
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < cols_; ++c) set(r, c, next());
    return *this;
  }

  std::vector<float> numbers() const {
    std::vector<float> all;
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < cols_; ++c) all.push_back(at(r, c));
    return all;
  }

  bool canaries_live() const {
    std::size_t width = static_cast<std::size_t>(cols_) * size_of(dtype_);
    auto live = [](auto from, auto to) { return std::all_of(from, to, [](std::byte b) { return b == kCanary; }); };
    auto at = bytes_.begin();
    if (!live(at, at + kGuard) || !live(bytes_.end() - kGuard, bytes_.end())) return false;
    for (std::int64_t r = 0; r < rows_; ++r) {
      auto row = at + kGuard + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(r * stride_) * size_of(dtype_));
      if (!live(row + static_cast<std::ptrdiff_t>(width),
                row + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(stride_) * size_of(dtype_))))
        return false;
    }
    return true;
  }

 private:
  static constexpr std::ptrdiff_t kGuard = 64;
  std::int64_t rows_, cols_, stride_;
  DType dtype_;
  std::vector<std::byte> bytes_;
};

// Exactly so many bytes, at an address of the given remainder modulo 64, between canaries.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes, std::size_t offset = 0) : size_(bytes), bytes_(bytes + 4 * kGuard, kCanary) {
    auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    begin_ = (kGuard - address % kGuard) % kGuard + kGuard + offset;
  }
  std::span<std::byte> span() { return std::span(bytes_).subspan(begin_, size_); }
  bool canaries_live() const {
    auto live = [](std::byte b) { return b == kCanary; };
    auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(begin_), end = begin + static_cast<std::ptrdiff_t>(size_);
    return std::all_of(bytes_.begin(), begin, live) && std::all_of(end, bytes_.end(), live);
  }

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t size_, begin_;
  std::vector<std::byte> bytes_;
};

}  // namespace forge::testing
