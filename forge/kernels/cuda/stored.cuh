#pragma once

#include <cstdint>

#include "forge/formats/list.h"
#include "forge/formats/philox.h"
#include "forge/kernels/cuda/columns.cuh"

// Stored matrices as kernels see them: a thread's four columns go from memory to registers as they are, in one access
// where they lie right for it; formats work on the registers.
namespace forge::cuda {

// What of a format decides which bytes a thread reads and writes.
struct Layout {
  std::uint8_t value_bytes;  // of a column
  std::uint8_t rest_bytes;   // of a column; 0 where there is no rest or it is scales
  bool scales;               // one of 16 bits for a block
  std::uint8_t random_bits;  // of a column
};
constexpr Layout layout_of(Format format) {
  const FormatInfo& info = info_of(format);
  bool scales = info.has_rest && info.columns_of_rest > 1;
  auto rest_bytes = static_cast<std::uint8_t>(info.has_rest && !scales ? size_of(info.rest) : 0);
  return {static_cast<std::uint8_t>(size_of(info.values)), rest_bytes, scales,
          static_cast<std::uint8_t>(info.random_bits)};
}

struct StoredArguments {
  void* values;
  void* rest;
  std::int64_t stride, rest_stride;
  Format format;
  Layout layout;
  NoisePlace noise;
  bool aligned;  // each row's columns come in fours that one access may take, of the rest, too
};

// One of a weight's matrices: 0 is the weight, 1 + k moment k.
inline StoredArguments arguments_of(const Stored& m, int which) {
  Layout layout = layout_of(m.format);
  auto in_fours = [](const Matrix& part, std::size_t bytes) {
    std::size_t four = bytes * kThreadColumns;
    return four == 0 || (reinterpret_cast<std::uintptr_t>(part.data) % four == 0 && part.stride % kThreadColumns == 0);
  };
  NoisePlace place = layout.random_bits > 0 ? noise_place(m.format, which) : NoisePlace{};
  return {m.values.data,   m.rest.data,
          m.values.stride, m.rest.stride,
          m.format,        layout,
          place,           in_fours(m.values, layout.value_bytes) && in_fours(m.rest, layout.rest_bytes)};
}

// How a matrix is stored, known when the kernel is compiled or when it runs.
template <Format kFormat>
struct Fixed {
  FORGE_DEVICE static Format format(const StoredArguments&) { return kFormat; }
  FORGE_DEVICE static Layout layout(const StoredArguments&) {
    constexpr Layout kLayout = layout_of(kFormat);
    return {kLayout.value_bytes, kLayout.rest_bytes, kLayout.scales, kLayout.random_bits};
  }
  template <int kWhich>
  FORGE_DEVICE static NoisePlace noise(const StoredArguments&) {
    constexpr NoisePlace kPlace = layout_of(kFormat).random_bits > 0 ? noise_place(kFormat, kWhich) : NoisePlace{};
    return {kPlace.use, kPlace.byte};
  }
};
struct AnyFormat {
  FORGE_DEVICE static Format format(const StoredArguments& m) { return m.format; }
  FORGE_DEVICE static Layout layout(const StoredArguments& m) { return m.layout; }
  template <int>
  FORGE_DEVICE static NoisePlace noise(const StoredArguments& m) {
    return m.noise;
  }
};

// Columns [0, valid) of the four from p on, as they are, one after another from the low bytes of words[0] on; the
// others are zeros. Read or written once and by nobody else: the cache is asked to let go of them first.
template <class T>
FORGE_DEVICE void load_four(const T* p, int valid, bool aligned, std::uint32_t* words) {
  if (aligned && valid == kThreadColumns) {
    if constexpr (sizeof(T) == 4) {
      uint4 all = __ldcs(reinterpret_cast<const uint4*>(p));
      words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
    } else if constexpr (sizeof(T) == 2) {
      uint2 all = __ldcs(reinterpret_cast<const uint2*>(p));
      words[0] = all.x, words[1] = all.y;
    } else {
      words[0] = __ldcs(reinterpret_cast<const std::uint32_t*>(p));
    }
    return;
  }
  std::uint32_t one[kThreadColumns];
  Columns::each([&](int i) { one[i] = i < valid ? static_cast<std::uint32_t>(p[i]) : 0; });
  if constexpr (sizeof(T) == 4)
    Columns::each([&](int i) { words[i] = one[i]; });
  else if constexpr (sizeof(T) == 2)
    words[0] = one[0] | one[1] << 16, words[1] = one[2] | one[3] << 16;
  else
    words[0] = one[0] | one[1] << 8 | one[2] << 16 | one[3] << 24;
}
template <class T>
FORGE_DEVICE void store_four(T* p, int valid, bool aligned, const std::uint32_t* words) {
  if (aligned && valid == kThreadColumns) {
    if constexpr (sizeof(T) == 4)
      __stcs(reinterpret_cast<uint4*>(p), make_uint4(words[0], words[1], words[2], words[3]));
    else if constexpr (sizeof(T) == 2)
      __stcs(reinterpret_cast<uint2*>(p), make_uint2(words[0], words[1]));
    else
      __stcs(reinterpret_cast<std::uint32_t*>(p), words[0]);
    return;
  }
  constexpr int kPerWord = 4 / sizeof(T);
  Columns::each([&](int i) {
    if (i < valid) p[i] = static_cast<T>(words[i / kPerWord] >> (i % kPerWord * 8 * static_cast<int>(sizeof(T))));
  });
}

// A thread's columns of a stored matrix, as they are in memory.
struct Raw {
  std::uint32_t values[kThreadColumns];
  std::uint32_t rest[2];  // of each column, or the scale of the block
};

// Where a thread works: `valid` of its four columns from `col` on are the matrix's, none in a row outside.
struct Spot {
  int row, col, valid;
  FORGE_DEVICE std::int64_t offset(std::int64_t stride) const { return row * stride + col; }
  FORGE_DEVICE std::int64_t offset_of_scale(std::int64_t stride) const { return row * stride + col / kBlockColumns; }
  // The first of the threads that share a block: it stores the scale.
  FORGE_DEVICE bool leads_block() const { return col % kBlockColumns == 0; }
};

// Of a matrix of (rows, cols): the four columns from `col` on.
FORGE_DEVICE Spot spot_in(int rows, int cols, int row, int col) {
  int left = row < rows ? cols - col : 0;
  return {row, col, left < 0 ? 0 : left < kThreadColumns ? left : kThreadColumns};
}

template <class HowStored>
FORGE_DEVICE Raw load_raw(const StoredArguments& m, const Spot& at) {
  Layout layout = HowStored::layout(m);
  Raw raw = {};
  if (at.valid == 0) return raw;
  std::int64_t from = at.offset(m.stride);
  if (layout.value_bytes == 4)
    load_four(static_cast<const std::uint32_t*>(m.values) + from, at.valid, m.aligned, raw.values);
  else if (layout.value_bytes == 2)
    load_four(static_cast<const std::uint16_t*>(m.values) + from, at.valid, m.aligned, raw.values);
  else
    load_four(static_cast<const std::uint8_t*>(m.values) + from, at.valid, m.aligned, raw.values);
  std::int64_t rest = at.offset(m.rest_stride);
  if (layout.rest_bytes == 2)
    load_four(static_cast<const std::uint16_t*>(m.rest) + rest, at.valid, m.aligned, raw.rest);
  else if (layout.rest_bytes == 1)
    load_four(static_cast<const std::uint8_t*>(m.rest) + rest, at.valid, m.aligned, raw.rest);
  else if (layout.scales)
    raw.rest[0] = static_cast<const std::uint16_t*>(m.rest)[at.offset_of_scale(m.rest_stride)];
  return raw;
}

template <class HowStored>
FORGE_DEVICE void store_raw(const StoredArguments& m, const Spot& at, const Raw& raw) {
  Layout layout = HowStored::layout(m);
  if (at.valid == 0) return;
  std::int64_t to = at.offset(m.stride);
  if (layout.value_bytes == 4)
    store_four(static_cast<std::uint32_t*>(m.values) + to, at.valid, m.aligned, raw.values);
  else if (layout.value_bytes == 2)
    store_four(static_cast<std::uint16_t*>(m.values) + to, at.valid, m.aligned, raw.values);
  else
    store_four(static_cast<std::uint8_t*>(m.values) + to, at.valid, m.aligned, raw.values);
  std::int64_t rest = at.offset(m.rest_stride);
  if (layout.rest_bytes == 2)
    store_four(static_cast<std::uint16_t*>(m.rest) + rest, at.valid, m.aligned, raw.rest);
  else if (layout.rest_bytes == 1)
    store_four(static_cast<std::uint8_t*>(m.rest) + rest, at.valid, m.aligned, raw.rest);
  else if (layout.scales && at.leads_block())
    static_cast<std::uint16_t*>(m.rest)[at.offset_of_scale(m.rest_stride)] = static_cast<std::uint16_t>(raw.rest[0]);
}

// The 16 random bits of each of a thread's columns, two a word. A shard with `in` columns.
FORGE_DEVICE void draw_four(Noise noise, std::uint32_t use, std::int64_t in, const Spot& at, std::uint32_t* two) {
  using Bits = Scalar::Bits;
  noise.use = use;
  std::int64_t column = noise.col + at.col, group = formats::noise_group(noise, in, at.row, column);
  formats::Philox<Bits> cipher(noise.key0(), noise.key1());
  Bits::Factor words[8];
  formats::draw_group(cipher, noise, group, words);
  if (noise.col % kThreadColumns == 0) {  // half a group
    bool upper = column % 8 != 0;
    two[0] = (upper ? words[2] : words[0]).lower().u;
    two[1] = (upper ? words[3] : words[1]).lower().u;
    return;
  }
  // A shard that begins between: the four are in this group and the next. Of the halves of both, in order, those from
  // column % 8 on, moved down by 4, 2 and 1.
  formats::draw_group(cipher, noise, group + 1, words + 4);
  std::uint32_t w0 = words[0].lower().u, w1 = words[1].lower().u, w2 = words[2].lower().u, w3 = words[3].lower().u;
  if (column & 4) w0 = w2, w1 = w3, w2 = words[4].lower().u, w3 = words[5].lower().u;
  if (column & 2) w0 = w1, w1 = w2, w2 = w3;
  two[0] = column & 1 ? w0 >> 16 | w1 << 16 : w0;
  two[1] = column & 1 ? w1 >> 16 | w2 << 16 : w1;
}

template <class HowStored, Sign kSign>
FORGE_DEVICE void decode(const StoredArguments& m, const Raw& raw, float* x) {
  Raw own = raw;
  Segment segment = {own.values, own.rest, nullptr};
  with_format(HowStored::format(m), kSign, [&]<class F>() { F::template decode<Columns>(segment, kBlockColumns, x); });
}
// noise: two words of draw_four, or null to round to nearest.
template <class HowStored, Sign kSign>
FORGE_DEVICE Raw encode(const StoredArguments& m, const float* x, const std::uint32_t* noise = nullptr,
                        int noise_byte = 0) {
  Raw raw = {};
  Segment segment = {raw.values, raw.rest, reinterpret_cast<const std::uint16_t*>(noise), noise_byte};
  with_format(HowStored::format(m), kSign, [&]<class F>() { F::template encode<Columns>(x, kBlockColumns, segment); });
  return raw;
}

}  // namespace forge::cuda
