#include "tests/emulator/machine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <vector>

#include "forge/base/testing/random.h"

namespace forge::emulator {
namespace {

using ::forge::testing::Random;

constexpr std::uint64_t kSeeds = 16;

// Calls f(schedule) for the extreme schedules and for as many drawn ones.
template <class F>
void for_each_schedule(F&& f) {
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Schedule schedule = Schedule::from_seed(seed);
    SCOPED_TRACE(schedule.describe());
    f(schedule);
  }
}

bool breaks(const Outcome& outcome, const std::string& rule) {
  return std::any_of(outcome.violations.begin(), outcome.violations.end(),
                     [&](const std::string& v) { return v.find(rule) != std::string::npos; });
}

// How many of the schedules leave a wrong sum where each thread reads what a thread of another warp has written.
int wrong_neighbours(bool with_barrier) {
  int wrong = 0;
  for_each_schedule([&](const Schedule& schedule) {
    constexpr unsigned kThreads = 128;
    std::vector<int> read(kThreads);
    Outcome outcome = launch({1}, {kThreads}, kThreads * sizeof(int), schedule, [&] {
      int* shared = static_cast<int*>(dynamic_shared());
      warp_sync();  // where the schedule may turn to another warp
      shared[thread_idx.x] = static_cast<int>(thread_idx.x);
      if (with_barrier) barrier_sync(0, kThreads);
      read[thread_idx.x] = shared[(thread_idx.x + 32) % kThreads];
    });
    EXPECT_TRUE(outcome.clean()) << outcome.describe();
    bool right = true;
    for (unsigned t = 0; t < kThreads; ++t) right &= read[t] == static_cast<int>((t + 32) % kThreads);
    wrong += !right;
  });
  return wrong;
}
TEST(Emulator, ABarrierOrdersWhatThreadsWriteAndItsAbsenceShows) {
  EXPECT_EQ(wrong_neighbours(true), 0);
  EXPECT_EQ(wrong_neighbours(false), static_cast<int>(kSeeds));
}

TEST(Emulator, RunsEveryBlockOnce) {
  std::vector<int> runs(3 * 5);
  launch({3, 5}, {32}, 0, {}, [&] { runs[block_idx.y * 3 + block_idx.x] += thread_idx.x == 7; });
  EXPECT_EQ(runs, std::vector<int>(3 * 5, 1));
}

TEST(Emulator, SaysWhoWaitsWhereInADeadlock) {
  Outcome outcome = launch({1}, {64}, 0, {}, [] {
    if (thread_idx.x < 32) barrier_sync(3, 64);
  });
  EXPECT_NE(outcome.deadlock.find("32 threads (warps 0) at bar.sync 3 (32 of 64)"), std::string::npos)
      << outcome.deadlock;
}

TEST(Emulator, SeesAWarpDiverge) {
  Outcome outcome = launch({1}, {32}, 0, {}, [] {
    if (thread_idx.x < 16)
      warp_sync();
    else
      warp_shuffle(1, 0);
  });
  EXPECT_TRUE(breaks(outcome, "warp diverged"));
}

TEST(Emulator, ShufflesWithinTheWarp) {
  std::vector<std::uint32_t> got(64);
  launch({1}, {64}, 0, {},
         [&] { got[thread_idx.x] = warp_shuffle(thread_idx.x, static_cast<int>(thread_idx.x % 32 ^ 5)); });
  for (unsigned t = 0; t < 64; ++t) EXPECT_EQ(got[t], t / 32 * 32 + (t % 32 ^ 5));
}

TEST(Emulator, SeesAWriteBehindSharedMemory) {
  Outcome outcome = launch({1}, {32}, 128, {}, [] { static_cast<char*>(dynamic_shared())[128 + thread_idx.x] = 0; });
  EXPECT_TRUE(breaks(outcome, "past the end of dynamic shared memory"));
}

// ---- cp.async

struct Copied {
  std::vector<float> at_once, after;
};
Copied copy(const Schedule& schedule, int bytes) {
  Copied copied{std::vector<float>(4), std::vector<float>(4)};
  alignas(16) static const float kSource[4] = {1, 2, 3, 4};
  Outcome outcome = launch({1}, {32}, 16, schedule, [&] {
    if (thread_idx.x != 0) return;
    float* shared = static_cast<float*>(dynamic_shared());
    cp_async_16(shared, kSource, bytes);
    cp_async_commit();
    std::copy_n(shared, 4, copied.at_once.begin());
    cp_async_wait(0);
    std::copy_n(shared, 4, copied.after.begin());
  });
  EXPECT_TRUE(outcome.clean()) << outcome.describe();
  return copied;
}
TEST(Emulator, LandsACopyByTheWaitAndNotBefore) {
  for_each_schedule([](const Schedule& schedule) {
    EXPECT_TRUE(std::isnan(copy(schedule, 16).at_once[0]));
    EXPECT_EQ(copy(schedule, 16).after, (std::vector<float>{1, 2, 3, 4}));
    EXPECT_EQ(copy(schedule, 12).after, (std::vector<float>{1, 2, 3, 0}));
    EXPECT_EQ(copy(schedule, 0).after, std::vector<float>(4));
  });
}
TEST(Emulator, SeesACopyThatIsNotAlignedOrNeverWaitedFor) {
  alignas(16) static const float kSource[8] = {};
  Schedule lazy{.cp_async = Pace::lazy};
  Outcome outcome = launch({1}, {1}, 64, lazy, [&] { cp_async_16(dynamic_shared(), kSource + 1, 16); });
  EXPECT_TRUE(breaks(outcome, "not aligned to 16 bytes"));
  EXPECT_TRUE(breaks(outcome, "copies in flight"));
}

// ---- TMA, mbarriers and wgmma: one product of 64 × 128 over 64 tokens

constexpr int kM = 64, kN = 128, kK = 64, kBoxBytes = 64 * 64 * 2;

struct Product {
  std::vector<std::uint16_t> a = std::vector<std::uint16_t>(kK * kM), b = std::vector<std::uint16_t>(kK * kN);
  std::vector<float> expected = std::vector<float>(kM * kN);

  // Small integers: sums are exact in any order. Tokens from `tokens` on are not in memory.
  explicit Product(int tokens = kK) {
    Random random(3);
    auto fill = [&](std::vector<std::uint16_t>& m) {
      for (std::uint16_t& x : m)
        x = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(random.below(15)) - 7) >> 16);
    };
    fill(a), fill(b);
    auto number = [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); };
    for (int t = 0; t < tokens; ++t)
      for (int m = 0; m < kM; ++m)
        for (int n = 0; n < kN; ++n)
          expected[static_cast<std::size_t>(m * kN + n)] +=
              number(a[static_cast<std::size_t>(t * kM + m)]) * number(b[static_cast<std::size_t>(t * kN + n)]);
  }
};

// What a mutant of the kernel below leaves out or does wrongly.
struct Mistake {
  bool no_init_fence = false, no_barrier = false, few_bytes = false, no_fence = false, no_wait = false,
       other_swizzle = false;
  int tokens = kK;
};

struct Multiplied {
  Outcome outcome;
  std::vector<float> c = std::vector<float>(kM * kN);
};

Multiplied multiply(const Product& p, const Schedule& schedule, const Mistake& mistake = {}) {
  Swizzle swizzle = mistake.other_swizzle ? Swizzle::none : Swizzle::b128;
  auto tokens = static_cast<std::uint64_t>(mistake.tokens);
  TensorMap a = encode_tensor_map({p.a.data(), kM, tokens, kM * 2, 64, 64, swizzle});
  TensorMap b = encode_tensor_map({p.b.data(), kN, tokens, kN * 2, 64, 64, swizzle});
  Multiplied result;
  result.outcome = launch({1}, {128}, 3 * kBoxBytes + sizeof(std::uint64_t), schedule, [&] {
    auto* shared = static_cast<std::byte*>(dynamic_shared());
    auto* bar = reinterpret_cast<std::uint64_t*>(shared + 3 * kBoxBytes);
    if (thread_idx.x == 0) {
      mbarrier_init(bar, 1);
      if (!mistake.no_init_fence) mbarrier_init_fence();
    }
    if (!mistake.no_barrier) barrier_sync(0, 128);
    if (thread_idx.x == 0) {
      mbarrier_arrive_expect_tx(bar, (mistake.few_bytes ? 2 : 3) * kBoxBytes);
      tma_load_2d(shared, a, bar, 0, 0);
      tma_load_2d(shared + kBoxBytes, b, bar, 0, 0);
      tma_load_2d(shared + 2 * kBoxBytes, b, bar, 64, 0);
    }
    mbarrier_wait_parity(bar, 0);
    float d[kN / 2];
    auto descriptor = [](std::uint32_t address) {  // boxes 8192 bytes apart, 8 tokens 1024, swizzle of 128 bytes
      return std::uint64_t{address >> 4} | std::uint64_t{kBoxBytes >> 4} << 16 | std::uint64_t{1024 >> 4} << 32 |
             std::uint64_t{1} << 62;
    };
    if (!mistake.no_fence) wgmma_fence();
    for (std::uint32_t k = 0; k < kK / 16; ++k)
      wgmma_mn_major(d, kN, descriptor(shared_address(shared) + k * 2048),
                     descriptor(shared_address(shared + kBoxBytes) + k * 2048), k != 0);
    wgmma_commit();
    wgmma_wait(mistake.no_wait ? 1 : 0);
    auto thread = static_cast<int>(thread_idx.x);
    for (int v = 0; v < kN / 2; ++v) {
      int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (v / 2 % 2), col = 8 * (v / 4) + 2 * (thread % 4) + v % 2;
      result.c[static_cast<std::size_t>(row * kN + col)] = d[v];
    }
    if (mistake.no_wait) wgmma_wait(0);
  });
  return result;
}

TEST(Emulator, MultipliesWhatTmaHasLoaded) {
  for (int tokens : {kK, kK - 3}) {
    Product product(tokens);
    for_each_schedule([&](const Schedule& schedule) {
      Multiplied result = multiply(product, schedule, {.tokens = tokens});
      EXPECT_TRUE(result.outcome.clean()) << result.outcome.describe();
      EXPECT_EQ(result.c, product.expected);
    });
  }
}

TEST(Emulator, SeesTheMistakesOfAProduct) {
  Product product;
  for_each_schedule([&](const Schedule& schedule) {
    EXPECT_TRUE(breaks(multiply(product, schedule, {.no_init_fence = true}).outcome, "without fence.mbarrier_init"));
    EXPECT_TRUE(breaks(multiply(product, schedule, {.no_fence = true}).outcome, "without wgmma.fence"));
    EXPECT_NE(multiply(product, schedule, {.other_swizzle = true}).c, product.expected);
  });
  EXPECT_TRUE(breaks(multiply(product, Schedule::from_seed(3), {.no_barrier = true}).outcome, "mbarrier"));
  Schedule late_loads{.tma = Pace::lazy};
  EXPECT_TRUE(breaks(multiply(product, late_loads, {.few_bytes = true}).outcome, "still filling"));
  Schedule late{.tma = Pace::eager, .mma = Pace::lazy};
  EXPECT_TRUE(std::isnan(multiply(product, late, {.no_wait = true}).c[0]));
}

TEST(Emulator, RefusesATensorMapAsTheDriverDoes) {
  alignas(16) static const std::uint16_t kBase[64] = {};
  EXPECT_THROW(encode_tensor_map({kBase + 1, 8, 8, 16, 8, 8, Swizzle::none}), std::invalid_argument);
  EXPECT_THROW(encode_tensor_map({kBase, 8, 8, 14, 8, 8, Swizzle::none}), std::invalid_argument);
  EXPECT_THROW(encode_tensor_map({kBase, 128, 8, 256, 128, 8, Swizzle::b128}), std::invalid_argument);
}

}  // namespace
}  // namespace forge::emulator
