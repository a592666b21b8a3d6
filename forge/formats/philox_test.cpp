#include "forge/formats/philox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "forge/base/hash.h"
#include "forge/base/scalar.h"
#include "forge/base/testing/random.h"

namespace forge::formats {
namespace {

using Words = std::array<std::uint32_t, 4>;

Words encrypt(Words words, std::uint32_t key0, std::uint32_t key1) {
  Scalar::Bits::Factor bits[4];
  for (int k = 0; k < 4; ++k) bits[k] = Scalar::Bits::Factor(Scalar::Bits(words[k]));
  Philox<Scalar::Bits>(key0, key1).encrypt(bits);
  for (int k = 0; k < 4; ++k) words[k] = bits[k].lower().u;
  return words;
}

// From Random123's kat_vectors.
TEST(Philox, GivesTheKnownAnswers) {
  constexpr std::uint32_t kOnes = 0xFFFFFFFF;
  struct {
    Words counter;
    std::uint32_t key0, key1;
    Words answer;
  } table[] = {
      {{0, 0, 0, 0}, 0, 0, {0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}},
      {{kOnes, kOnes, kOnes, kOnes}, kOnes, kOnes, {0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}},
      {{0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344},
       0xA4093822,
       0x299F31D0,
       {0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}},
  };
  for (const auto& [counter, key0, key1, answer] : table) EXPECT_EQ(encrypt(counter, key0, key1), answer);
}

TEST(Fnv1a, GivesTheKnownAnswers) {
  EXPECT_EQ(fnv1a(""), 0x811C9DC5);
  EXPECT_EQ(fnv1a("a"), 0xE40C292C);
  EXPECT_EQ(fnv1a("foobar"), 0xBF9CF968);
  EXPECT_EQ(fnv1a("\xC3\xA4"), ((0x811C9DC5u ^ 0xC3) * 0x01000193u ^ 0xA4) * 0x01000193u) << "bytes are not negative";
}

// ---- Contract 5, written once more: the cipher round by round, the counter term by term ------------------

// What may be wrong; the defaults are right.
struct Formula {
  int rounds = 10;
  bool group_by_floor = false, no_row_offset = false, no_column_offset = false, shard_width = false;
  bool no_parameter = false, no_upper_seed = false, no_upper_group = false, no_upper_step = false, no_use = false;
  bool use_in_upper_half = false, lanes_backwards = false, upper_half_first = false, lane_of_the_shard = false;
};

std::uint16_t bits_at(const Noise& noise, std::uint64_t in, std::uint64_t row, std::uint64_t col, const Formula& f) {
  std::uint64_t width = noise.in > 0 && !f.shard_width ? static_cast<std::uint64_t>(noise.in) : in;
  std::uint64_t global_row = row + (f.no_row_offset ? 0 : static_cast<std::uint64_t>(noise.row));
  std::uint64_t global_col = col + (f.no_column_offset ? 0 : static_cast<std::uint64_t>(noise.col));
  std::uint64_t group = global_row * (f.group_by_floor ? width / 8 : (width + 7) / 8) + (global_col >> 3);
  std::uint64_t step = static_cast<std::uint64_t>(noise.step);
  std::uint32_t use = f.no_use ? 0 : noise.use, upper = f.no_upper_step ? 0 : step >> 32 & 0xFFFF;
  std::uint32_t c[4] = {static_cast<std::uint32_t>(group),
                        f.no_upper_group ? 0 : static_cast<std::uint32_t>(group >> 32),
                        static_cast<std::uint32_t>(step), f.use_in_upper_half ? use << 16 | upper : upper << 16 | use};
  std::uint32_t key0 = static_cast<std::uint32_t>(noise.seed),
                key1 = f.no_upper_seed ? 0 : static_cast<std::uint32_t>(noise.seed >> 32);
  if (!f.no_parameter) key1 ^= noise.parameter;
  for (int round = 0; round < f.rounds; ++round) {
    std::uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    std::uint32_t next[4] = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ key0, static_cast<std::uint32_t>(b),
                             static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ key1, static_cast<std::uint32_t>(a)};
    std::copy(next, next + 4, c);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  std::uint64_t lane = (f.lane_of_the_shard ? col : global_col) & 7;
  if (f.lanes_backwards) lane = 7 - lane;
  bool upper_half = (lane % 2 == 1) != f.upper_half_first;
  return static_cast<std::uint16_t>(c[lane / 2] >> (upper_half ? 16 : 0));
}

struct Piece {
  const char* what;
  Noise noise;
  std::int64_t in, row, col, n;
};

std::vector<Piece> pieces() {
  constexpr std::uint64_t kSeed = 0x0123456789ABCDEF;
  std::uint32_t name = fnv1a("model.layers.0.weight");
  return {
      {"a row of whole groups", {.seed = kSeed}, 64, 0, 0, 64},
      {"a ragged row", {.seed = kSeed, .parameter = name, .step = 1}, 37, 5, 0, 37},
      {"from the middle of a group", {.seed = kSeed, .parameter = name, .step = 2}, 37, 3, 13, 20},
      {"inside one group", {.seed = 7, .parameter = name, .step = 2}, 5, 9, 1, 3},
      {"nothing", {.seed = 7}, 5, 0, 0, 0},
      {"a moment", {.seed = kSeed, .parameter = name, .step = 3, .use = 2}, 33, 1, 0, 33},
      {"a step above 2³²", {.seed = kSeed, .parameter = name, .step = 0x123400000005, .use = 1}, 33, 1, 0, 33},
      {"the last step", {.seed = kSeed, .parameter = name, .step = 0xFFFFFFFFFFFF}, 33, 1, 0, 33},
      {"a shard", {.seed = kSeed, .parameter = name, .step = 4, .row = 11, .col = 32, .in = 100}, 40, 2, 8, 30},
      {"a shard cut inside a group", {.seed = kSeed, .step = 4, .row = 3, .col = 13, .in = 91}, 29, 2, 5, 24},
      {"groups above 2³²", {.seed = kSeed, .step = 4, .row = 0x10000001, .col = 7, .in = 4095}, 4000, 0, 0, 50},
      {"groups across 2³²", {.seed = kSeed, .step = 4, .row = 0x7FFFFFF, .in = 256}, 256, 0, 200, 56},
      {"groups across 2³² inside a row", {.seed = kSeed, .col = (1ll << 35) - 104, .in = 1ll << 36}, 200, 0, 3, 197},
  };
}

bool equal(const Piece& p, const Formula& formula) {
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(p.n) + 1, 0xA5A5);
  fill_noise<Scalar>(p.noise, p.in, p.row, p.col, p.n, bits.data());
  EXPECT_EQ(bits.back(), 0xA5A5) << p.what << ": written beside";
  for (std::int64_t j = 0; j < p.n; ++j)
    if (bits[static_cast<std::size_t>(j)] != bits_at(p.noise, static_cast<std::uint64_t>(p.in),
                                                     static_cast<std::uint64_t>(p.row),
                                                     static_cast<std::uint64_t>(p.col + j), formula))
      return false;
  return true;
}

TEST(Noise, IsTheFormulaOfItsContract) {
  for (const Piece& p : pieces()) EXPECT_TRUE(equal(p, {})) << p.what;
}

TEST(Noise, IsTheFormulaOnRandomPieces) {
  testing::Random random(51);
  for (int i = 0; i < 2000; ++i) {
    std::int64_t in = 1 + random.below(300), col = random.below(in);
    Noise noise = {.seed = random.bits(),
                   .parameter = static_cast<std::uint32_t>(random.bits()),
                   .step = random.below(1ll << 48),
                   .use = static_cast<std::uint32_t>(random.below(5)),
                   .row = random.below(1ll << 31),
                   .col = random.below(1ll << 16)};
    noise.in = random.below(2) ? 0 : noise.col + in + random.below(1 << 20);
    Piece p = {"random", noise, in, random.below(1 << 20), col, random.below(in - col + 1)};
    ASSERT_TRUE(equal(p, {})) << "piece " << i;
  }
}

TEST(Noise, MutationsOfTheFormulaAreCaught) {
  const Formula wrong[] = {{.rounds = 9},
                           {.group_by_floor = true},
                           {.no_row_offset = true},
                           {.no_column_offset = true},
                           {.shard_width = true},
                           {.no_parameter = true},
                           {.no_upper_seed = true},
                           {.no_upper_group = true},
                           {.no_upper_step = true},
                           {.no_use = true},
                           {.use_in_upper_half = true},
                           {.lanes_backwards = true},
                           {.upper_half_first = true},
                           {.lane_of_the_shard = true}};
  int i = 0;
  for (const Formula& formula : wrong) {
    bool caught = false;
    for (const Piece& p : pieces()) caught = caught || !equal(p, formula);
    EXPECT_TRUE(caught) << "mutation " << i;
    ++i;
  }
}

}  // namespace
}  // namespace forge::formats
