#include "forge/kernels/cpu/cpu.h"

#include <algorithm>
#include <numeric>

#include "forge/base/integers.h"
#include "forge/kernels/cpu/arena.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/row_operation.h"
#include "forge/kernels/cpu/strips.h"
#include "forge/kernels/float_environment.h"
#include "forge/kernels/line_sums.h"
#include "forge/kernels/norm_lanes.h"

namespace forge::cpu {
namespace {

constexpr std::int64_t kLineBytes = 64;

// The fp32 matrix that G is, but for its scale, where that is all it is: no strip is needed to read it.
const ConstMatrix* plain_dense(const Expression& G) {
  if (G.terms.size() != 1) return nullptr;
  const Dense* dense = std::get_if<Dense>(&G.terms[0]);
  return dense && dense->scale == 1 && dense->D.dtype == DType::f32 ? &dense->D : nullptr;
}

// The row operation fed from memory: two-phase training's second phase. shard: as for_each_segment has it.
void for_each_dense_segment(const ConstMatrix& D, const Context& context, const SegmentConsumer& consumer,
                            std::int64_t shard) {
  constexpr std::int64_t kColumns = 4096, kTask = 1 << 16;  // 256 KiB of D: small beside a call, whole rows
  std::int64_t rows = shard > 0 ? D.rows : std::max<std::int64_t>(kTask / std::max<std::int64_t>(D.cols, 1), 1);
  std::int64_t cols = shard > 0 ? shard : D.cols, piece = shard > 0 ? kLinePiece : kColumns;
  std::int64_t row_tasks = rows > 0 ? ceil_div(D.rows, rows) : 0, col_tasks = cols > 0 ? ceil_div(D.cols, cols) : 0;
  parallel_tasks(context.executor, row_tasks * col_tasks, [&](std::int64_t task, int) {
    FloatEnvironment ieee;
    std::int64_t row = task / col_tasks * rows, col = task % col_tasks * cols;
    for (std::int64_t r = row; r < std::min(row + rows, D.rows); ++r)
      for (std::int64_t c = col, end = std::min(col + cols, D.cols); c < end; c += piece)
        consumer.consume(r, c, std::min(piece, end - c), static_cast<const float*>(D.row(r)) + c, nullptr);
  });
}

void visit(const Expression& G, const Context& context, const SegmentConsumer& consumer, std::int64_t shard = 0) {
  if (const ConstMatrix* D = plain_dense(G))
    for_each_dense_segment(*D, context, consumer, shard);
  else
    for_each_segment(G, context, consumer, shard);
}

// The lanes of `sums` sums over a matrix, for each row together.
class RowLanes {
 public:
  static std::size_t bytes(const Expression& G, int sums) {
    return static_cast<std::size_t>(G.out * sums * kNormLanes) * sizeof(double) + kLineBytes;
  }
  RowLanes(const Expression& G, int sums, const Context& context)
      : rows_(G.out), sums_(sums), lanes_(Arena(context.workspace).take<double>(rows_ * sums * kNormLanes)) {
    std::fill_n(lanes_, rows_ * sums * kNormLanes, 0.0);
  }
  double* of(std::int64_t row) const { return lanes_ + row * sums_ * kNormLanes; }
  double total(int sum) const {
    double total = 0;
    for (std::int64_t r = 0; r < rows_; ++r) total += reduce_norm_lanes(of(r) + sum * kNormLanes);
    return total;
  }

 private:
  std::int64_t rows_;
  int sums_;
  double* lanes_;
};

// What is left of a workspace whose beginning is taken.
Context behind(std::size_t bytes, const Context& context) {
  return {context.executor, context.workspace.subspan(bytes), context.target};
}

}  // namespace

std::size_t workspace_bytes(const Expression& G, int workers, Target target) {
  return strips_workspace_bytes(G, workers, chain_half(target)) + RowLanes::bytes(G, kMaxSums);
}

Sums update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Context& context, std::span<RoundingCount> rounding) {
  FloatEnvironment ieee;
  int sums = rule.rule().sums;
  RowLanes lanes(G, sums, context);
  RowOperation operation(W, S, rule, G.scale, context.target, rounding);
  auto consume = [&](std::int64_t row, std::int64_t col, std::int64_t n, const float* g, const Tile* tile) {
    operation.update(row, col, n, g, lanes.of(row), tile);
  };
  visit(G, behind(RowLanes::bytes(G, sums), context), {consume, operation.takes_tiles(), operation.columns()});
  Sums result = {.of_squares = {}, .out = G.out, .in = G.in};
  for (int k = 0; k < sums; ++k) result.of_squares[static_cast<std::size_t>(k)] = lanes.total(k);
  return result;
}

void materialize(const Matrix& D, const Expression& G, const Context& context) {
  RowStorer storer(D, G.scale, context.target);
  auto consume = [&](std::int64_t row, std::int64_t col, std::int64_t n, const float* g, const Tile*) {
    storer.store(row, col, n, g);
  };
  visit(G, context, {consume});
}

double sum_squares(const Expression& G, const Context& context) {
  FloatEnvironment ieee;
  RowLanes lanes(G, 1, context);
  auto add_squares = format_half(context.target).add_squares;
  auto consume = [&](std::int64_t row, std::int64_t, std::int64_t n, const float* g, const Tile*) {
    add_squares(lanes.of(row), g, n, G.scale);
  };
  visit(G, behind(RowLanes::bytes(G, 1), context), {consume});
  return lanes.total(0);
}

void sum_squares_of_lines(const Expression& G, std::span<double> of_rows, std::span<double> of_columns,
                          const Context& context) {
  FloatEnvironment ieee;
  std::int64_t shard = columns_of_line_shard(G.in), shards = ceil_div(G.in, shard);
  static_assert(kLineShards <= kMaxSums * kNormLanes);  // what a shard gives to a row has the place of its lanes
  double* parts = Arena(context.workspace).take<double>(G.out * shards);
  std::fill_n(parts, G.out * shards, 0.0);
  std::fill(of_columns.begin(), of_columns.end(), 0.0);
  const FormatHalf& half = format_half(context.target);
  auto consume = [&](std::int64_t row, std::int64_t col, std::int64_t n, const float* g, const Tile*) {
    double lanes[kNormLanes] = {};
    half.add_squares(lanes, g, n, G.scale);
    half.add_squares_of_columns(of_columns.data() + col, g, n, G.scale);
    parts[row * shards + col / shard] += reduce_norm_lanes(lanes);
  };
  visit(G, behind(RowLanes::bytes(G, kMaxSums), context), {consume}, shard);
  for (std::int64_t r = 0; r < G.out; ++r)
    of_rows[static_cast<std::size_t>(r)] = std::accumulate(parts + r * shards, parts + (r + 1) * shards, 0.0);
}

void recode(const Stored& to, const Stored& from, Sign sign, const Context& context) {
  RowStore source(from, sign, context.target), sink(to, sign, context.target);
  parallel_tasks(context.executor, to.values.rows, [&](std::int64_t row, int) {
    FloatEnvironment ieee;
    for (std::int64_t col = 0; col < to.values.cols; col += kRowBlock) {
      std::int64_t n = std::min(kRowBlock, to.values.cols - col);
      float buffer[kRowBlock];
      const float* x = source.load(row, col, n, buffer);
      float* y = sink.place(row, col, buffer);
      if (x != y) std::copy_n(x, n, y);
      sink.store(sink.segment(row, col), n, y);
    }
  });
}

}  // namespace forge::cpu
