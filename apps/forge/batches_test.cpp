#include "apps/forge/batches.h"

#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "forge/base/error.h"

namespace forge::app {
namespace {

std::vector<std::int32_t> count_to(std::int32_t n) {
  std::vector<std::int32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

std::int64_t first_of(const at::Tensor& windows, std::int64_t row) { return windows[row][0].item<std::int64_t>(); }

TEST(Batches, RefuseLessThanAWindow) {
  EXPECT_THROW(Batches(count_to(4), 4, 0, true), Error);
  EXPECT_THROW(Batches({}, 4, 0, true), Error);
  EXPECT_NO_THROW(Batches(count_to(5), 4, 0, true));
}

TEST(Batches, InFileOrderShareOneTokenAndBeginAgain) {
  Batches batches(count_to(11), 4, 0, /*shuffle=*/false);  // windows 0…4 and 4…8; the rest fills none
  EXPECT_EQ(batches.windows(), 2);
  const at::Tensor windows = batches.next(3);
  EXPECT_EQ(windows.size(1), 5);
  EXPECT_EQ(windows[0][4].item<std::int64_t>(), 4);
  EXPECT_EQ(first_of(windows, 1), 4);
  EXPECT_EQ(first_of(windows, 2), 0);
}

TEST(Batches, VisitEachWindowOnceAnEpochInANewOrder) {
  Batches batches(count_to(101), 1, 7, /*shuffle=*/true);
  const at::Tensor first = batches.next(100), second = batches.next(100);
  for (const at::Tensor& epoch : {first, second}) {
    std::set<std::int64_t> seen;
    for (std::int64_t i = 0; i < 100; ++i) seen.insert(first_of(epoch, i));
    EXPECT_EQ(seen.size(), 100u);
  }
  EXPECT_FALSE(at::equal(first, second));
}

TEST(Batches, AreTheSameForTheSameSeed) {
  Batches a(count_to(101), 2, 7, true), b(count_to(101), 2, 7, true), c(count_to(101), 2, 8, true);
  const at::Tensor windows = a.next(50);
  EXPECT_TRUE(at::equal(windows, b.next(50)));
  EXPECT_FALSE(at::equal(windows, c.next(50)));
}

}  // namespace
}  // namespace forge::app
