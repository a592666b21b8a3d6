#include "forge/kernels/cpu/cpu.h"

#include <algorithm>

#include "forge/base/integers.h"
#include "forge/kernels/cpu/arena.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/strips.h"
#include "forge/kernels/float_environment.h"
#include "forge/kernels/norm_lanes.h"

namespace forge::cpu {
namespace {

constexpr std::int64_t kLineBytes = 64;

void prefetch(const Matrix& m, std::int64_t row, std::int64_t col, std::int64_t n) {
  const char* from = static_cast<const char*>(m.at(row, col));
  for (std::int64_t i = 0; i < n * static_cast<std::int64_t>(size_of(m.dtype)); i += kLineBytes)
    __builtin_prefetch(from + i, 1, 2);
}

// The fp32 matrix that G is, but for its scale, where that is all it is: no strip is needed to read it.
const ConstMatrix* plain_dense(const Expression& G) {
  if (G.terms.size() != 1) return nullptr;
  const Dense* dense = std::get_if<Dense>(&G.terms[0]);
  return dense && dense->scale == 1 && dense->D.dtype == DType::f32 ? &dense->D : nullptr;
}

// The row operation fed from memory: two-phase training's second phase.
void for_each_dense_segment(const ConstMatrix& D, const Context& context, const SegmentConsumer& consumer) {
  constexpr std::int64_t kColumns = 4096, kTask = 1 << 16;  // 256 KiB of D: small beside a call, whole rows
  std::int64_t rows = std::max<std::int64_t>(kTask / std::max<std::int64_t>(D.cols, 1), 1);
  parallel_tasks(context.executor, ceil_div(D.rows, rows), [&](std::int64_t task, int) {
    FloatEnvironment ieee;
    for (std::int64_t r = task * rows; r < std::min((task + 1) * rows, D.rows); ++r)
      for (std::int64_t c = 0; c < D.cols; c += kColumns)
        consumer.consume(r, c, std::min(kColumns, D.cols - c), static_cast<const float*>(D.row(r)) + c);
  });
}

void visit(const Expression& G, const Context& context, const SegmentConsumer& consumer) {
  if (const ConstMatrix* D = plain_dense(G))
    for_each_dense_segment(*D, context, consumer);
  else
    for_each_segment(G, context, consumer);
}

std::size_t norm_bytes(const Expression& G) { return G.out * kNormLanes * sizeof(double) + kLineBytes; }

}  // namespace

std::size_t workspace_bytes(const Expression& G, int workers, Target target) {
  return strips_workspace_bytes(G, workers, chain_half(target)) + norm_bytes(G);
}

void update(const Matrix& W, std::span<const Matrix> S, const Expression& G, const RuleStep& rule,
            const Context& context) {
  DType state = S.empty() ? DType::f32 : S[0].dtype;
  RowUpdate row_update = row_half(context.target).update(rule.index(), W.dtype, state);
  const void* step = std::visit([](const auto& s) -> const void* { return &s; }, rule);
  auto consume = [&](std::int64_t row, std::int64_t col, std::int64_t n, const float* g) {
    void* s[kMaxMoments];
    for (std::size_t k = 0; k < S.size(); ++k) s[k] = S[k].at(row, col);
    row_update(W.at(row, col), s, g, n, G.scale, step);
  };
  auto touch = [&](std::int64_t row, std::int64_t col, std::int64_t n) {
    prefetch(W, row, col, n);
    for (const Matrix& moment : S) prefetch(moment, row, col, n);
  };
  visit(G, context, {consume, touch});
}

void materialize(const Matrix& D, const Expression& G, const Context& context) {
  auto store = row_half(context.target).store;
  auto consume = [&](std::int64_t row, std::int64_t col, std::int64_t n, const float* g) {
    store(D.at(row, col), D.dtype, g, n, G.scale);
  };
  auto touch = [&](std::int64_t row, std::int64_t col, std::int64_t n) { prefetch(D, row, col, n); };
  visit(G, context, {consume, touch});
}

double sum_squares(const Expression& G, const Context& context) {
  FloatEnvironment ieee;
  Arena arena(context.workspace);
  auto* lanes = arena.take<double>(G.out * kNormLanes);
  std::fill_n(lanes, G.out * kNormLanes, 0.0);
  auto add_squares = row_half(context.target).add_squares;
  auto consume = [&](std::int64_t row, std::int64_t, std::int64_t n, const float* g) {
    add_squares(lanes + row * kNormLanes, g, n, G.scale);
  };
  Context rest = {context.executor, context.workspace.subspan(norm_bytes(G)), context.target};
  visit(G, rest, {consume, [](auto, auto, auto) {}});
  double total = 0;
  for (std::int64_t r = 0; r < G.out; ++r) total += reduce_norm_lanes(lanes + r * kNormLanes);
  return total;
}

}  // namespace forge::cpu
