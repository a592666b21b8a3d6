#include "forge/kernels/cpu/strips.h"

#include <algorithm>
#include <bit>

#include "forge/base/integers.h"
#include "forge/kernels/cpu/arena.h"
#include "forge/kernels/cpu/pairs.h"
#include "forge/kernels/cpu/row_buckets.h"
#include "forge/kernels/cpu/strip_worker.h"
#include "forge/kernels/cpu/tile_config.h"
#include "forge/kernels/float_environment.h"
#include "forge/kernels/line_sums.h"

namespace forge::cpu {
namespace {

// Columns that are consumed beside a tile: as many elements as it has, or a few more, so that there is a tile for each
// piece of a strip of the same size; in whole blocks.
std::int64_t piece_beside(const ChainHalf& chain) {
  auto tile = static_cast<std::uint64_t>(chain.tile_rows * chain.tile_cols);
  return std::max(static_cast<std::int64_t>(std::bit_ceil(tile)), kBlockColumns);
}

TileConfig tile_for(const Expression& G, Steps steps, int workers, const ChainHalf& chain) {
  return choose_tile({.out = G.out,
                      .in = G.in,
                      .steps = steps.of(G),
                      .workers = workers,
                      .tile_rows = chain.tile_rows,
                      .tile_cols = chain.tile_cols});
}

// Where everything lies in the workspace.
struct Buffers {
  float* packed_x;
  float* packed_dy;  // one piece for each worker
  float* strips;     // two for each worker
  std::int64_t dy_floats, strip_floats;
  RowBuckets* rows;

  Buffers(const Expression& G, Steps steps, int workers, const ChainHalf& chain, const TileConfig& tile, Arena& arena) {
    std::int64_t K = steps.of(G);
    dy_floats = round_up(tile.task_panels * chain.tile_rows * K, kLineFloats);
    strip_floats = tile.strip_panels * chain.tile_rows * tile.strip_stride();
    packed_x = arena.take<float>(tile.block_cols * K);
    packed_dy = arena.take<float>(workers * dy_floats);
    strips = arena.take<float>(2 * workers * strip_floats);
    std::int64_t rows_terms =
        std::count_if(G.terms.begin(), G.terms.end(), [](const Term& t) { return std::holds_alternative<Rows>(t); });
    rows = arena.take<RowBuckets>(rows_terms);
    RowBuckets* next = rows;
    for (const Term& term : G.terms)
      if (const Rows* r = std::get_if<Rows>(&term)) {
        RowBuckets buckets(G.out, r->values.rows, arena);
        if (!arena.measuring()) *next++ = buckets;
      }
  }

 private:
  static constexpr std::int64_t kLineFloats = 16;  // workers do not share a cache line
};

void pack_x(const Job& job, std::int64_t col_end, Executor& executor) {
  constexpr std::int64_t kPanelsAtOnce = 16;  // reads 1 KiB of a token's row at a time
  std::int64_t unit = kPanelsAtOnce * job.chain.tile_cols;
  parallel_tasks(executor, ceil_div(col_end - job.col, unit), [&](std::int64_t task, int) {
    FloatEnvironment ieee;
    std::int64_t begin = job.col + task * unit;
    for_each_outer(job, [&](const Outer& outer, std::int64_t step) {
      std::int64_t cols = std::min(unit, col_end - begin), panel = job.K * job.chain.tile_cols;
      float* to = job.packed_x + (begin - job.col) * job.K + step * job.chain.tile_cols;
      if (job.steps.pairs)
        job.chain.pack_b_pairs(outer.X, begin, cols, to, panel);
      else
        job.chain.pack_b(outer.X, 1.0f, begin, cols, to, panel);
    });
  });
}

}  // namespace

std::size_t strips_workspace_bytes(const Expression& G, int workers, const ChainHalf& chain) {
  // Which steps it will be depends on the numbers.
  std::size_t most = 0;
  for (Steps steps : {Steps{false}, Steps{true}}) {
    Arena arena;
    Buffers(G, steps, workers, chain, tile_for(G, steps, workers, chain), arena);
    most = std::max(most, arena.used());
  }
  return most;
}

void for_each_segment(const Expression& G, const Context& context, const SegmentConsumer& consumer,
                      std::int64_t shard) {
  const ChainHalf& chain = chain_half(context.target);
  Steps steps = {chain.has_pairs() && is_exact_in_pairs(G, context.executor)};
  TileConfig tile = tile_for(G, steps, context.executor.workers(), chain);
  Arena arena(context.workspace);
  Buffers buffers(G, steps, context.executor.workers(), chain, tile, arena);
  RowBuckets* next = buffers.rows;
  for (const Term& term : G.terms)
    if (const Rows* rows = std::get_if<Rows>(&term)) (next++)->sort(rows->index);

  Job job = {.G = G,
             .consumer = consumer,
             .chain = chain,
             .tile = tile,
             .steps = steps,
             .K = steps.of(G),
             .col = 0,
             .packed_x = buffers.packed_x,
             .rows = buffers.rows,
             .piece = shard > 0              ? kLinePiece
                      : consumer.columns > 0 ? consumer.columns
                                             : piece_beside(chain)};
  std::int64_t task_rows = tile.task_panels * chain.tile_rows, row_tasks = ceil_div(G.out, task_rows);
  for (; job.col < G.in; job.col += tile.block_cols) {
    std::int64_t col_end = std::min(job.col + tile.block_cols, G.in);
    pack_x(job, col_end, context.executor);
    // Tasks by rows or, with shards, by columns.
    std::int64_t first = shard > 0 ? job.col / shard : 0;
    Tasks tasks(shard > 0 ? ceil_div(col_end, shard) - first : row_tasks);
    context.executor.run([&](int worker) {
      Worker work(job, buffers.packed_dy + worker * buffers.dy_floats,
                  buffers.strips + 2 * worker * buffers.strip_floats, buffers.strip_floats);
      auto run = [&](std::int64_t task, std::int64_t from, std::int64_t to) {
        work.run(task * task_rows, std::min((task + 1) * task_rows, G.out), from, to);
      };
      tasks.take([&](std::int64_t task) {
        if (shard == 0) return run(task, job.col, col_end);
        std::int64_t from = std::max((first + task) * shard, job.col);
        std::int64_t to = std::min((first + task + 1) * shard, col_end);
        for (std::int64_t rows = 0; rows < row_tasks; ++rows) run(rows, from, to);
      });
      work.finish();
    });
  }
}

}  // namespace forge::cpu
