#include "forge/kernels/cpu/strips.h"

#include <algorithm>

#include "forge/base/integers.h"
#include "forge/kernels/cpu/arena.h"
#include "forge/kernels/cpu/row_buckets.h"
#include "forge/kernels/cpu/tile_config.h"
#include "forge/kernels/float_environment.h"

namespace forge::cpu {
namespace {

// A strip's place in W.
struct Place {
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;
};

// Announces a strip to the consumer in equal pieces.
class Announcement {
 public:
  Announcement() = default;
  Announcement(const Place& place, std::int64_t pieces)
      : place_(place), piece_(ceil_div(place.rows * place.cols, pieces)) {}

  void advance(const SegmentConsumer& consumer) {
    for (std::int64_t left = piece_; left > 0 && row_ < place_.rows;) {
      std::int64_t n = std::min(left, place_.cols - col_);
      consumer.touch(place_.row + row_, place_.col + col_, n);
      left -= n;
      col_ += n;
      if (col_ == place_.cols) ++row_, col_ = 0;
    }
  }

 private:
  Place place_;
  std::int64_t piece_ = 0;
  std::int64_t row_ = 0, col_ = 0;
};

// Everything about one call that all workers share.
struct Job {
  const Expression& G;
  const SegmentConsumer& consumer;
  const ChainHalf& chain;
  TileConfig tile;
  std::int64_t K;          // tokens of all Outer terms: the length of the packed panels
  std::int64_t col;        // where the block of columns begins that is worked at
  float* packed_x;         // panels of K × tile_cols for the columns of this block
  const RowBuckets* rows;  // one for each Rows term
};

// Calls f(outer, token) for each Outer term; `token` is where its tokens begin in the packed panels.
template <class F>
void for_each_outer(const Expression& G, const F& f) {
  std::int64_t token = 0;
  for (const Term& term : G.terms)
    if (const Outer* outer = std::get_if<Outer>(&term)) {
      f(*outer, token);
      token += outer->X.rows;
    }
}

// One worker on one task, strip by strip: the chain fills the strip, the consumer empties it, and during both the
// memory that the consumer will need for the next strip is on its way.
class Worker {
 public:
  Worker(const Job& job, float* packed_dy, float* strip) : job_(job), packed_dy_(packed_dy), strip_(strip) {}

  // Rows [row, row_end) by columns [col, col_end) of the block.
  void run(std::int64_t row, std::int64_t row_end, std::int64_t col, std::int64_t col_end) {
    FloatEnvironment ieee;
    task_ = {.row = row, .rows = row_end - row, .col = col, .cols = col_end - col};
    pack_dy();
    place_ = {.row = row,
              .rows = std::min(strip_rows(), task_.rows),
              .col = col,
              .cols = std::min(job_.tile.strip_cols, task_.cols)};
    while (place_.rows > 0) {
      Place next = after(place_);
      do_strip(next);
      place_ = next;
    }
  }

 private:
  std::int64_t tile_rows() const { return job_.chain.tile_rows; }
  std::int64_t strip_rows() const { return job_.tile.strip_panels * tile_rows(); }

  // Down the rows first: X's panels stay in cache. No rows: the task is done.
  Place after(Place p) const {
    p.row += p.rows;
    if (p.row == task_.row + task_.rows) {
      p.row = task_.row;
      p.col += p.cols;
      p.cols = std::min(job_.tile.strip_cols, task_.col + task_.cols - p.col);
      if (p.cols == 0) return {};
    }
    p.rows = std::min(strip_rows(), task_.row + task_.rows - p.row);
    return p;
  }

  void pack_dy() {
    for_each_outer(job_.G, [&](const Outer& outer, std::int64_t token) {
      job_.chain.pack_a(outer.dY, outer.scale, task_.row, task_.rows, packed_dy_ + token * tile_rows(),
                        job_.K * tile_rows());
    });
  }

  void do_strip(const Place& next) {
    std::int64_t row_panels = ceil_div(place_.rows, tile_rows());
    std::int64_t col_panels = ceil_div(place_.cols, job_.chain.tile_cols);
    std::int64_t segments = ceil_div(place_.cols, kSegmentColumns);
    next_ = Announcement(next, product_pauses(job_.K, row_panels * col_panels) + place_.rows * segments);
    fill(row_panels, col_panels);
    for (std::int64_t r = 0; r < place_.rows; ++r)
      for (std::int64_t c = 0; c < place_.cols; c += kSegmentColumns) {
        next_.advance(job_.consumer);
        std::int64_t n = std::min(kSegmentColumns, place_.cols - c);
        job_.consumer.consume(place_.row + r, place_.col + c, n, strip_row(r) + c);
      }
  }

  float* strip_row(std::int64_t r) { return strip_ + r * job_.tile.strip_cols; }

  // The chains of the strip: each run of Outer terms is one product, other terms add rows.
  void fill(std::int64_t row_panels, std::int64_t col_panels) {
    StripProduct run = {.a = packed_dy_ + (place_.row - task_.row) * job_.K,
                        .a_panel = job_.K * tile_rows(),
                        .row_panels = row_panels,
                        .b = job_.packed_x + (place_.col - job_.col) * job_.K,
                        .b_panel = job_.K * job_.chain.tile_cols,
                        .col_panels = col_panels,
                        .K = 0,
                        .strip = strip_,
                        .stride = job_.tile.strip_cols,
                        .fresh = true};
    const RowBuckets* buckets = job_.rows;
    for (const Term& term : job_.G.terms) {
      if (const Outer* outer = std::get_if<Outer>(&term)) {
        run.K += outer->X.rows;
        continue;
      }
      multiply(run);
      if (const Dense* dense = std::get_if<Dense>(&term))
        add_dense(*dense);
      else
        add_rows(std::get<Rows>(term), *buckets++);
    }
    multiply(run);
  }

  // Runs the tokens that the product has collected, and makes it the run behind them.
  void multiply(StripProduct& run) {
    if (run.K > 0) {
      job_.chain.multiply(run, [this] { next_.advance(job_.consumer); });
    } else if (run.fresh) {
      for (std::int64_t r = 0; r < place_.rows; ++r) std::fill_n(strip_row(r), place_.cols, -0.0f);
    }
    run.a += run.K * tile_rows();
    run.b += run.K * job_.chain.tile_cols;
    run.K = 0;
    run.fresh = false;
  }

  void add_row(std::int64_t r, const ConstMatrix& m, std::int64_t from_row, float scale) {
    job_.chain.add_row(m.at(from_row, place_.col), m.dtype, scale, strip_row(r), place_.cols);
  }

  void add_dense(const Dense& term) {
    for (std::int64_t r = 0; r < place_.rows; ++r) add_row(r, term.D, place_.row + r, term.scale);
  }

  void add_rows(const Rows& term, const RowBuckets& buckets) {
    for (std::int64_t r = 0; r < place_.rows; ++r)
      for (std::int64_t token : buckets.tokens(place_.row + r)) add_row(r, term.values, token, term.scale);
  }

  const Job& job_;
  float* packed_dy_;
  float* strip_;
  Place task_, place_;
  Announcement next_;
};

TileConfig tile_for(const Expression& G, int workers, const ChainHalf& chain) {
  return choose_tile({.out = G.out,
                      .in = G.in,
                      .tokens = outer_tokens(G),
                      .workers = workers,
                      .tile_rows = chain.tile_rows,
                      .tile_cols = chain.tile_cols});
}

// Where everything lies in the workspace.
struct Buffers {
  float* packed_x;
  float* packed_dy;  // one piece for each worker
  float* strips;     // one for each worker
  std::int64_t dy_floats, strip_floats;
  RowBuckets* rows;

  Buffers(const Expression& G, int workers, const ChainHalf& chain, const TileConfig& tile, Arena& arena) {
    std::int64_t K = outer_tokens(G);
    dy_floats = round_up(tile.task_panels * chain.tile_rows * K, kLineFloats);
    strip_floats = round_up(tile.strip_panels * chain.tile_rows * tile.strip_cols, kLineFloats);
    packed_x = arena.take<float>(tile.block_cols * K);
    packed_dy = arena.take<float>(workers * dy_floats);
    strips = arena.take<float>(workers * strip_floats);
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
    for_each_outer(job.G, [&](const Outer& outer, std::int64_t token) {
      job.chain.pack_b(outer.X, 1.0f, begin, std::min(unit, col_end - begin),
                       job.packed_x + (begin - job.col) * job.K + token * job.chain.tile_cols,
                       job.K * job.chain.tile_cols);
    });
  });
}

}  // namespace

std::size_t strips_workspace_bytes(const Expression& G, int workers, const ChainHalf& chain) {
  Arena arena;
  Buffers(G, workers, chain, tile_for(G, workers, chain), arena);
  return arena.used();
}

void for_each_segment(const Expression& G, const Context& context, const SegmentConsumer& consumer,
                      std::int64_t shard) {
  const ChainHalf& chain = chain_half(context.target);
  TileConfig tile = tile_for(G, context.executor.workers(), chain);
  Arena arena(context.workspace);
  Buffers buffers(G, context.executor.workers(), chain, tile, arena);
  RowBuckets* next = buffers.rows;
  for (const Term& term : G.terms)
    if (const Rows* rows = std::get_if<Rows>(&term)) (next++)->sort(rows->index);

  Job job = {G, consumer, chain, tile, outer_tokens(G), 0, buffers.packed_x, buffers.rows};
  std::int64_t task_rows = tile.task_panels * chain.tile_rows, row_tasks = ceil_div(G.out, task_rows);
  for (; job.col < G.in; job.col += tile.block_cols) {
    std::int64_t col_end = std::min(job.col + tile.block_cols, G.in);
    pack_x(job, col_end, context.executor);
    auto run = [&](std::int64_t task, std::int64_t from, std::int64_t to, int worker) {
      Worker(job, buffers.packed_dy + worker * buffers.dy_floats, buffers.strips + worker * buffers.strip_floats)
          .run(task * task_rows, std::min((task + 1) * task_rows, G.out), from, to);
    };
    if (shard == 0) {
      parallel_tasks(context.executor, row_tasks,
                     [&](std::int64_t task, int worker) { run(task, job.col, col_end, worker); });
      continue;
    }
    std::int64_t first = job.col / shard;
    parallel_tasks(context.executor, ceil_div(col_end, shard) - first, [&](std::int64_t k, int worker) {
      std::int64_t from = std::max((first + k) * shard, job.col), to = std::min((first + k + 1) * shard, col_end);
      for (std::int64_t task = 0; task < row_tasks; ++task) run(task, from, to, worker);
    });
  }
}

}  // namespace forge::cpu
