#pragma once

#include <algorithm>
#include <cstdint>

#include "forge/base/inline.h"
#include "forge/base/integers.h"
#include "forge/base/noise.h"

namespace forge::formats {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a bijection of 128-bit
// counters for each 64-bit key. `Bits` is 32 bits of one or more counters (base/scalar.h).
template <class Bits>
class Philox {
 public:
  using Factor = typename Bits::Factor;

  FORGE_INLINE Philox(std::uint32_t key0, std::uint32_t key1) {
    for (int round = 0; round < kRounds; ++round, key0 += kWeyl0, key1 += kWeyl1) {
      keys_[2 * round] = Bits(key0);
      keys_[2 * round + 1] = Bits(key1);
    }
  }

  // Of a counter's four words, which become the 128 bits.
  FORGE_INLINE void encrypt(Factor* c) const {
    for (int round = 0; round < kRounds; ++round) {
      Factor product0 = c[0] * kMultiplier0, product1 = c[2] * kMultiplier1;
      c[0] = product1.upper() ^ c[1] ^ keys_[2 * round];
      c[1] = product1;
      c[2] = product0.upper() ^ c[3] ^ keys_[2 * round + 1];
      c[3] = product0;
    }
  }

 private:
  static constexpr int kRounds = 10;
  static constexpr std::uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  static constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

  Bits keys_[2 * kRounds];
};

// The number of the 8 columns of a row that hold `column`, a column of the whole matrix as noise.col is, while `row`
// counts from the shard's first. A shard with `in` columns.
FORGE_INLINE std::int64_t noise_group(const Noise& noise, std::int64_t in, std::int64_t row, std::int64_t column) {
  return (noise.row + row) * ceil_div(noise.in > 0 ? noise.in : in, 8) + column / 8;
}

// words ← the 128 bits of a group and, where Bits has more lanes, of those behind it: no carry between the lanes.
template <class Bits, class Factor = typename Bits::Factor>
FORGE_INLINE void draw_group(const Philox<Bits>& cipher, const Noise& noise, std::int64_t group, Factor* words) {
  words[0] = Factor(Bits(static_cast<std::uint32_t>(group)) + Bits::groups());
  words[1] = Factor(Bits(static_cast<std::uint32_t>(group >> 32)));
  words[2] = Factor(Bits(noise.counter2()));
  words[3] = Factor(Bits(noise.counter3()));
  cipher.encrypt(words);
}

// out[j] ← the 16 bits of (row, col + j), j < n, of a shard with `in` columns.
template <class V>
FORGE_INLINE void fill_noise(const Noise& noise, std::int64_t in, std::int64_t row, std::int64_t col, std::int64_t n,
                             std::uint16_t* out) {
  using Bits = typename V::Bits;
  constexpr std::int64_t kGroups = V::kLanes, kColumns = 8 * kGroups;
  std::int64_t column = noise.col + col, group = noise_group(noise, in, row, column);
  Philox<Bits> cipher(noise.key0(), noise.key1());
  // Whole registers of groups, so that counting inside one never carries.
  std::int64_t before = group % kGroups * 8 + column % 8;
  group -= group % kGroups;
  for (std::int64_t j = -before; j < n; j += kColumns, group += kGroups) {
    typename Bits::Factor words[4];
    draw_group(cipher, noise, group, words);
    if (j >= 0 && j + kColumns <= n) {
      Bits::store_groups(words, out + j);
      continue;
    }
    std::uint16_t bits[kColumns];
    Bits::store_groups(words, bits);
    std::int64_t first = std::max<std::int64_t>(-j, 0);
    std::copy(bits + first, bits + std::min(kColumns, n - j), out + j + first);
  }
}

}  // namespace forge::formats
