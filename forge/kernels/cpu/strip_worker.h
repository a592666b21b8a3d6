#pragma once

// What one thread does with strips of G. strips.cpp shares the work out.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <variant>

#include "forge/base/integers.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/pairs.h"
#include "forge/kernels/cpu/row_buckets.h"
#include "forge/kernels/cpu/strips.h"
#include "forge/kernels/cpu/tile_config.h"
#include "forge/kernels/float_environment.h"

namespace forge::cpu {

// A strip's place in W.
struct Place {
  std::int64_t row = 0, rows = 0, col = 0, cols = 0;
};

// A strip of G in memory, in pieces for the consumer: from left to right, row by row.
class Strip {
 public:
  Strip(float* g, std::int64_t stride) : g_(g), stride_(stride) {}

  void begin(const Place& place, std::int64_t piece) {
    place_ = place;
    piece_ = piece;
    pieces_of_row_ = ceil_div(place.cols, piece);
  }

  const Place& place() const { return place_; }
  float* row(std::int64_t r) const { return g_ + r * stride_; }
  std::int64_t stride() const { return stride_; }
  std::int64_t pieces() const { return place_.rows * pieces_of_row_; }

  void consume(std::int64_t i, const SegmentConsumer& consumer, const Tile* tile) const {
    auto [r, c, n] = piece(i);
    consumer.consume(place_.row + r, place_.col + c, n, row(r) + c, tile);
  }

 private:
  struct Piece {
    std::int64_t r, c, n;
  };
  Piece piece(std::int64_t i) const {
    std::int64_t c = i % pieces_of_row_ * piece_;
    return {i / pieces_of_row_, c, std::min(piece_, place_.cols - c)};
  }

  float* g_;
  std::int64_t stride_;
  Place place_;
  std::int64_t piece_ = 1, pieces_of_row_ = 0;
};

// Steps between two stores of the accumulators: a panel of dY (8 rows: 16 KiB) stays in L1 while the panels of X stream
// by.
constexpr std::int64_t kStepBlock = 512;

// The steps of G's chains of Outer terms, each of a token or of two.
struct Steps {
  bool pairs;
  std::int64_t of(const Outer& outer) const { return pairs ? pairs_of(outer) : outer.X.rows; }
  std::int64_t of(const Expression& G) const {
    if (!pairs) return outer_tokens(G);
    std::int64_t steps = 0;
    for (const Term& term : G.terms)
      if (const Outer* outer = std::get_if<Outer>(&term)) steps += of(*outer);
    return steps;
  }
};

// Some panels of rows times some panels of columns: a run of steps of a strip.
struct StripProduct {
  const float* a;  // row panels of K × tile rows, packed, `a_panel` floats apart
  std::int64_t a_panel;
  std::int64_t row_panels;
  const float* b;  // column panels of K × tile cols, packed, `b_panel` floats apart
  std::int64_t b_panel;
  std::int64_t col_panels;
  std::int64_t K;  // steps
  bool fresh;      // the chains start at −0, not at what the strip holds
};

// Everything about one call that all workers share.
struct Job {
  const Expression& G;
  const SegmentConsumer& consumer;
  const ChainHalf& chain;
  TileConfig tile;
  Steps steps;
  std::int64_t K;          // of all Outer terms: the length of the packed panels
  std::int64_t col;        // where the block of columns begins that is worked at
  float* packed_x;         // panels of K × tile_cols for the columns of this block
  const RowBuckets* rows;  // one for each Rows term
  std::int64_t piece;      // columns that the consumer gets at a time
};

// Calls f(outer, step) for each Outer term; `step` is where its steps begin in the packed panels.
template <class F>
void for_each_outer(const Job& job, const F& f) {
  std::int64_t step = 0;
  for (const Term& term : job.G.terms)
    if (const Outer* outer = std::get_if<Outer>(&term)) {
      f(*outer, step);
      step += job.steps.of(*outer);
    }
}

// One worker, strip by strip: while the chain fills a strip, the consumer empties the one before it, a piece beside a
// tile, so that the memory and the divider that the consumer waits for work beside the chain's multiply-adds.
class Worker {
 public:
  Worker(const Job& job, float* packed_dy, float* strips, std::int64_t strip_floats)
      : job_(job),
        packed_dy_(packed_dy),
        filling_(strips, job.tile.strip_stride()),
        full_(strips + strip_floats, job.tile.strip_stride()) {}

  // Rows [row, row_end) by columns [col, col_end) of the block. Their last strip may wait.
  void run(std::int64_t row, std::int64_t row_end, std::int64_t col, std::int64_t col_end) {
    task_ = {.row = row, .rows = row_end - row, .col = col, .cols = col_end - col};
    pack_dy();
    Place place = {.row = row,
                   .rows = std::min(strip_rows(), task_.rows),
                   .col = col,
                   .cols = std::min(job_.tile.strip_cols, task_.cols)};
    for (; place.rows > 0; place = after(place)) {
      filling_.begin(place, job_.piece);
      fill();
      finish();
      std::swap(filling_, full_);
      consumed_ = 0;
    }
  }

  // Empties the strip that waits.
  void finish() { consume_until(full_.pieces()); }

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
    for_each_outer(job_, [&](const Outer& outer, std::int64_t step) {
      float* to = packed_dy_ + step * tile_rows();
      if (job_.steps.pairs)
        job_.chain.pack_a_pairs(outer.dY, task_.row, task_.rows, to, job_.K * tile_rows());
      else
        job_.chain.pack_a(outer.dY, outer.scale, task_.row, task_.rows, to, job_.K * tile_rows());
    });
  }

  void consume(const Tile* tile) { full_.consume(consumed_++, job_.consumer, tile); }
  void consume_until(std::int64_t end) {
    while (consumed_ < end) consume(nullptr);
  }

  // The chains of the strip: each run of Outer terms is one product, other terms add rows.
  void fill() {
    const Place& place = filling_.place();
    std::int64_t row_panels = ceil_div(place.rows, tile_rows());
    std::int64_t col_panels = ceil_div(place.cols, job_.chain.tile_cols);
    tiles_ = {.done = 0, .all = ceil_div(job_.K, kStepBlock) * row_panels * col_panels};
    StripProduct run = {.a = packed_dy_ + (place.row - task_.row) * job_.K,
                        .a_panel = job_.K * tile_rows(),
                        .row_panels = row_panels,
                        .b = job_.packed_x + (place.col - job_.col) * job_.K,
                        .b_panel = job_.K * job_.chain.tile_cols,
                        .col_panels = col_panels,
                        .K = 0,
                        .fresh = true};
    const RowBuckets* buckets = job_.rows;
    for (const Term& term : job_.G.terms) {
      if (const Outer* outer = std::get_if<Outer>(&term)) {
        run.K += job_.steps.of(*outer);
        continue;
      }
      finish_run(run);
      if (const Dense* dense = std::get_if<Dense>(&term))
        add_dense(*dense);
      else
        add_rows(std::get<Rows>(term), *buckets++);
    }
    finish_run(run);
  }

  // Runs the steps that the product has collected, and makes it the run behind them.
  void finish_run(StripProduct& run) {
    const Place& place = filling_.place();
    if (run.K > 0) {
      multiply(run);
    } else if (run.fresh) {
      for (std::int64_t r = 0; r < place.rows; ++r) std::fill_n(filling_.row(r), place.cols, -0.0f);
    }
    run.a += run.K * tile_rows();
    run.b += run.K * job_.chain.tile_cols;
    run.K = 0;
    run.fresh = false;
  }

  void multiply(const StripProduct& run) {
    for (std::int64_t t = 0; t < run.K; t += kStepBlock)
      for (std::int64_t j = 0; j < run.col_panels; ++j)
        for (std::int64_t i = 0; i < run.row_panels; ++i)
          run_tile({.a = run.a + i * run.a_panel + t * tile_rows(),
                    .b = run.b + j * run.b_panel + t * job_.chain.tile_cols,
                    .steps = std::min(kStepBlock, run.K - t),
                    .c = filling_.row(i * tile_rows()) + j * job_.chain.tile_cols,
                    .stride = filling_.stride(),
                    .fresh = run.fresh && t == 0,
                    .pairs = job_.steps.pairs});
  }

  // A tile, and as large a part of the full strip as it is of the one that it fills.
  void run_tile(const Tile& tile) {
    // Several runs may take some tiles more than one of as many steps.
    std::int64_t done = std::min(++tiles_.done, tiles_.all), end = full_.pieces() * done / tiles_.all;
    if (job_.consumer.takes_tiles && consumed_ < end)
      consume(&tile);
    else
      job_.chain.multiply(tile);
    consume_until(end);
  }

  void add_row(std::int64_t r, const ConstMatrix& m, std::int64_t from_row, float scale) {
    const Place& place = filling_.place();
    job_.chain.add_row(m.at(from_row, place.col), m.dtype, scale, filling_.row(r), place.cols);
  }

  void add_dense(const Dense& term) {
    for (std::int64_t r = 0; r < filling_.place().rows; ++r) add_row(r, term.D, filling_.place().row + r, term.scale);
  }

  void add_rows(const Rows& term, const RowBuckets& buckets) {
    for (std::int64_t r = 0; r < filling_.place().rows; ++r)
      for (std::int64_t token : buckets.tokens(filling_.place().row + r)) add_row(r, term.values, token, term.scale);
  }

  struct Tiles {
    std::int64_t done = 0, all = 0;
  };

  const Job& job_;
  float* packed_dy_;
  Place task_;
  Strip filling_, full_;
  std::int64_t consumed_ = 0;  // pieces of the full strip
  Tiles tiles_;                // of the strip that is filled
  FloatEnvironment ieee_;
};

}  // namespace forge::cpu
