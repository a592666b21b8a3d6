#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "forge/base/hash.h"
#include "forge/base/integers.h"
#include "forge/base/matrix.h"
#include "forge/base/scalar.h"
#include "forge/base/widen.h"
#include "forge/formats/list.h"
#include "forge/formats/philox.h"
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
      std::memset(view().row(r), 0, static_cast<std::size_t>(cols) * size_of(dtype));
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
    if (dtype_ == DType::bf16) formats::Bf16::encode_at(Scalar(x), {row, nullptr, nullptr}, c);
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

// A matrix in any format, with canaries around its parts.
class StoredBuffer {
 public:
  StoredBuffer(std::int64_t rows, std::int64_t cols, Format format, Sign sign = Sign::any, std::int64_t padding = 3)
      : format_(format),
        sign_(sign),
        values_(rows, cols, sign == Sign::any ? info_of(format).values : info_of(format).not_negative_values, padding),
        rest_(rows, info_of(format).has_rest ? ceil_div(cols, info_of(format).columns_of_rest) : 0,
              info_of(format).rest, padding) {}

  Stored view() { return {format_, values_.view(), info_of(format_).has_rest ? rest_.view() : Matrix{}, noise}; }
  Format format() const { return format_; }
  Sign sign() const { return sign_; }

  // The numbers of a row, decoded and encoded on scalars.
  std::vector<float> row(std::int64_t r) const {
    Stored stored = const_cast<StoredBuffer*>(this)->view();
    std::vector<float> x(static_cast<std::size_t>(stored.values.cols));
    with_format(format_, sign_,
                [&]<class F>() { F::template decode<Scalar>(segment_at(stored, r, 0), std::ssize(x), x.data()); });
    return x;
  }
  // Rounded to nearest.
  void set_row(std::int64_t r, const std::vector<float>& x) { encode_row(x, segment_at(view(), r, 0)); }
  // As an update of the weight rounds it whose noise is given: 0 is the weight, 1 + k moment k.
  void set_updated_row(std::int64_t r, const std::vector<float>& x, Noise of_weight, int which) {
    std::vector<std::uint16_t> bits(x.size());
    NoisePlace place = noise_place(format_, which);
    of_weight.use = place.use;
    formats::fill_noise<Scalar>(of_weight, std::ssize(x), r, 0, std::ssize(x), bits.data());
    Segment s = segment_at(view(), r, 0);
    s.noise = bits.data();
    s.noise_byte = place.byte;
    encode_row(x, s);
  }
  std::vector<float> numbers() const {
    std::vector<float> all;
    for (std::int64_t r = 0; r < const_cast<StoredBuffer*>(this)->view().values.rows; ++r) {
      std::vector<float> x = row(r);
      all.insert(all.end(), x.begin(), x.end());
    }
    return all;
  }
  float at(std::int64_t r, std::int64_t c) const { return row(r)[static_cast<std::size_t>(c)]; }
  // Row by row from next().
  template <class Next>
  StoredBuffer& fill(Next&& next) {
    Matrix m = view().values;
    for (std::int64_t r = 0; r < m.rows; ++r) {
      std::vector<float> x(static_cast<std::size_t>(m.cols));
      for (float& one : x) one = next();
      set_row(r, x);
    }
    return *this;
  }

  bool canaries_live() const { return values_.canaries_live() && rest_.canaries_live(); }
  friend bool same_bytes(const StoredBuffer& a, const StoredBuffer& b) {
    return a.values_.bytes() == b.values_.bytes() && a.rest_.bytes() == b.rest_.bytes();
  }

  Noise noise = {.seed = 0x0123456789ABCDEF, .parameter = fnv1a("model.layers.0.weight"), .step = 7};

 private:
  void encode_row(const std::vector<float>& x, const Segment& s) {
    with_format(format_, sign_, [&]<class F>() { F::template encode<Scalar>(x.data(), std::ssize(x), s); });
  }

  Format format_;
  Sign sign_;
  Buffer values_, rest_;
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
