#pragma once

#include <cstdint>

namespace forge {

// The random bits of one matrix in one step. They depend on the element's place in the whole matrix and on nothing
// else: no tile, shard, thread or device (contract 5).
//   key      (seed low, seed high XOR FNV-1a of the parameter's name)
//   counter  (group low, group high, step low, step bits 32–47 << 16 | use),  group = row · ⌈in / 8⌉ + (col >> 3)
// A call gives 128 bits: 16 for each of 8 columns, lane col & 7, from the low half of the first word on.
struct Noise {
  std::uint64_t seed = 0;
  std::uint32_t parameter = 0;    // FNV-1a of its canonical name in UTF-8
  std::int64_t step = 0;          // below 2⁴⁸
  std::uint32_t use = 0;          // 0: the weight; 1, 2, …: its moments
  std::int64_t row = 0, col = 0;  // where this shard begins in the whole matrix
  std::int64_t in = 0;            // columns of the whole matrix; 0: of this one

  constexpr std::uint32_t key0() const { return static_cast<std::uint32_t>(seed); }
  constexpr std::uint32_t key1() const { return static_cast<std::uint32_t>(seed >> 32) ^ parameter; }
  constexpr std::uint32_t counter2() const { return static_cast<std::uint32_t>(step); }
  constexpr std::uint32_t counter3() const { return static_cast<std::uint32_t>(step >> 32) << 16 | use; }
};

}  // namespace forge
