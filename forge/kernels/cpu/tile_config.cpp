#include "forge/kernels/cpu/tile_config.h"

#include <algorithm>

#include "forge/base/integers.h"

namespace forge::cpu {
namespace {

// Sizes that were measured (bench/kernels.cpp; 4096 × 4096, two cores with 512 KiB of L2 each and 32 MiB of L3).
// Up to kLongChain steps, whole rows: W and its moments stream best in long segments, and X's panels stay in L3.
constexpr std::int64_t kLongChain = 512;
constexpr std::int64_t kWideStrip = 4096;  // 6 rows of it are 96 KiB, 8 rows 128: two strips stay in L2
constexpr std::int64_t kWideTask = 16;
// Beyond, the product dominates: a block of X's panels (512 columns by 512 tokens: 1 MiB) is used by several panels
// of rows before the next one is read.
constexpr std::int64_t kNarrowStrip = 512;
constexpr std::int64_t kNarrowPanels = 4;
constexpr std::int64_t kNarrowTask = 32;
// Packed X, half of that L3. It bounds the workspace, which would else grow with the tokens as X does.
constexpr std::int64_t kPackedBytes = 16 << 20;
// Fewer tasks than this per worker would leave some waiting for the last.
constexpr std::int64_t kTasksPerWorker = 8;

}  // namespace

TileConfig choose_tile(const TileProblem& p) {
  bool narrow = p.steps > kLongChain;
  std::int64_t in = round_up(std::max<std::int64_t>(p.in, 1), p.tile_cols);
  std::int64_t panels = ceil_div(p.out, p.tile_rows);
  std::int64_t strip_panels = narrow ? kNarrowPanels : 1;
  std::int64_t strip_cols = std::min(narrow ? kNarrowStrip : kWideStrip, in);
  std::int64_t task =
      std::clamp<std::int64_t>(panels / (kTasksPerWorker * p.workers), 1, narrow ? kNarrowTask : kWideTask);
  std::int64_t packed_cols = kPackedBytes / std::max<std::int64_t>(4 * p.steps, 1);
  return {.strip_panels = strip_panels,
          .strip_cols = strip_cols,
          .task_panels = round_up(task, strip_panels),
          .block_cols = std::clamp(packed_cols / strip_cols * strip_cols, strip_cols, round_up(in, strip_cols))};
}

std::string to_string(const TileConfig& c) {
  return "strips of " + std::to_string(c.strip_panels) + " panels by " + std::to_string(c.strip_cols) +
         " columns, tasks of " + std::to_string(c.task_panels) + " panels, X packed by " +
         std::to_string(c.block_cols) + " columns";
}

}  // namespace forge::cpu
