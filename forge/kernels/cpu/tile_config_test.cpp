#include "forge/kernels/cpu/tile_config.h"

#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "forge/base/testing/executors.h"
#include "forge/base/testing/property.h"
#include "forge/kernels/target.h"

namespace forge::cpu {
namespace {

// What every choice has to keep, whatever the machine: said of one problem.
::testing::AssertionResult keeps_its_word(const TileProblem& p) {
  TileConfig c = choose_tile(p);
  auto wrong = [&](const char* what) {
    return ::testing::AssertionFailure() << what << ": " << to_string(c) << " for (" << p.out << ", " << p.in << "), "
                                         << p.steps << " steps, " << p.workers << " workers";
  };
  if (!(c == choose_tile(p))) return wrong("not pure");
  if (c.strip_panels < 1 || c.strip_cols < 1 || c.task_panels < 1 || c.block_cols < 1) return wrong("an empty tile");
  if (c.strip_cols % p.tile_cols != 0) return wrong("the strip is no multiple of tile columns");
  if (c.task_panels % c.strip_panels != 0) return wrong("the task is no multiple of strips");
  if (c.block_cols % c.strip_cols != 0) return wrong("the block is no multiple of strips");
  if (c.strip_cols >= p.in + p.tile_cols && c.strip_cols > p.tile_cols) return wrong("the strip is wider than W");
  // Segments begin at multiples of 32, for blocks of 8-bit codes.
  if (c.strip_cols < p.in && c.strip_cols % 32 != 0) return wrong("the second strip begins within a block");
  constexpr std::int64_t kStripBytes = 256 << 10, kPackedBytes = 16 << 20;
  if (4 * c.strip_panels * p.tile_rows * c.strip_cols > kStripBytes) return wrong("two strips exceed L2");
  if (c.block_cols > c.strip_cols && 4 * c.block_cols * p.steps > kPackedBytes) return wrong("too much X is packed");
  return ::testing::AssertionSuccess();
}

TEST(TileConfig, KeepsItsWordOnTheShapesOfModels) {
  for (auto [out, in] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {4096, 4096}, {14336, 4096}, {4096, 14336}, {128256, 4096}, {1, 1}, {0, 0}, {7, 0}, {0, 7}, {896, 896}})
    for (std::int64_t tokens : {0, 1, 512, 513, 4096, 1 << 20})
      for (int workers : {1, 2, 64})
        for (auto [rows, cols] : {std::pair{6, 16}, std::pair{8, 32}, std::pair{12, 8}})
          EXPECT_TRUE(keeps_its_word({out, in, tokens, workers, rows, cols}));
}

TEST(TileConfig, KeepsItsWordOnAnyProblem) {
  EXPECT_TRUE(testing::holds(2000, [] {
    auto [rows, cols] = *rc::gen::element(std::pair{6, 16}, std::pair{8, 32}, std::pair{12, 8});
    TileProblem p = {.out = *rc::gen::inRange<std::int64_t>(0, 200000),
                     .in = *rc::gen::inRange<std::int64_t>(0, 200000),
                     .steps = *rc::gen::inRange<std::int64_t>(0, 100000),
                     .workers = *rc::gen::inRange(1, 257),
                     .tile_rows = rows,
                     .tile_cols = cols};
    auto kept = keeps_its_word(p);
    if (!kept) RC_FAIL(kept.message());
  }));
}

TEST(TileConfig, IsPrintable) {
  EXPECT_EQ(to_string({.strip_panels = 1, .strip_cols = 4096, .task_panels = 16, .block_cols = 8192}),
            "strips of 1 panels by 4096 columns, tasks of 16 panels, X packed by 8192 columns");
}

// The workspace grows with the tokens, not with the gradient: less than W as fp32 where W is large.
TEST(TileConfig, TheWorkspaceIsSmallBesideTheGradient) {
  static const float number = 0;
  for (std::int64_t tokens : {1, 512, 2048}) {
    std::int64_t out = 14336, in = 4096;
    Term term = Outer{{&number, DType::f32, tokens, out, out}, {&number, DType::f32, tokens, in, in}};
    for (Target target : available_targets())
      for (int workers : {1, 8})
        EXPECT_LT(forge::workspace_bytes({out, in, std::span(&term, 1)}, workers, target),
                  static_cast<std::size_t>(out * in * 4) / 2)
            << tokens << " tokens, " << workers << " workers";
  }
}

}  // namespace
}  // namespace forge::cpu
