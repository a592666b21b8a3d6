#include "forge/kernels/ref/ref.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>

#include "forge/base/scalar.h"
#include "forge/base/widen.h"
#include "forge/formats/list.h"
#include "forge/formats/philox.h"
#include "forge/kernels/float_environment.h"
#include "forge/kernels/line_sums.h"
#include "forge/kernels/norm_lanes.h"
#include "forge/kernels/rule_table.h"

namespace forge::ref {
namespace {

float element(const ConstMatrix& m, std::int64_t row, std::int64_t col) {
  return with_dtype(m.dtype, [&]<class T>(Tag<T>) { return to_float(static_cast<const T*>(m.row(row))[col]); });
}

void add_row(const Outer& term, std::int64_t row, std::int64_t in, float* g) {
  for (std::int64_t t = 0; t < term.X.rows; ++t) {
    float dy = term.scale * element(term.dY, t, row);
    for (std::int64_t c = 0; c < in; ++c) g[c] = std::fma(dy, element(term.X, t, c), g[c]);
  }
}

void add_row(const Rows& term, std::int64_t row, std::int64_t in, float* g) {
  for (std::int64_t t = 0; t < term.values.rows; ++t)
    if (term.index[t] == row)
      for (std::int64_t c = 0; c < in; ++c) g[c] = std::fma(term.scale, element(term.values, t, c), g[c]);
}

void add_row(const Dense& term, std::int64_t row, std::int64_t in, float* g) {
  for (std::int64_t c = 0; c < in; ++c) g[c] = std::fma(term.scale, element(term.D, row, c), g[c]);
}

// Calls body(row, g) with each finished row of G, in order.
template <class Body>
void for_each_row(const Expression& G, const Context& context, const Body& body) {
  FloatEnvironment ieee;
  void* row_of_G = context.workspace.data();
  std::size_t bytes = context.workspace.size();
  auto* g = static_cast<float*>(std::align(alignof(float), G.in * sizeof(float), row_of_G, bytes));
  for (std::int64_t row = 0; row < G.out; ++row) {
    std::fill_n(g, G.in, -0.0f);
    for (const Term& term : G.terms) std::visit([&](const auto& t) { add_row(t, row, G.in, g); }, term);
    for (std::int64_t c = 0; c < G.in; ++c) g[c] = G.scale * g[c];
    body(row, g);
  }
}

// Columns at a time; a multiple of kBlockColumns.
constexpr std::int64_t kColumns = 256;

void decode(const Stored& m, Sign sign, std::int64_t row, std::int64_t col, std::int64_t n, float* x) {
  with_format(m.format, sign, [&]<class F>() { F::template decode<Scalar>(segment_at(m, row, col), n, x); });
}

// What an element's update reads.
void load(const Stored& m, const Moment& moment, std::int64_t row, std::int64_t col, std::int64_t n, float* x) {
  if (moment.extent == Extent::row) {
    decode(m, moment.sign, row, 0, 1, x);
    std::fill_n(x, n, x[0]);
  } else {
    decode(m, moment.sign, moment.extent == Extent::column ? 0 : row, col, n, x);
  }
}

// noise: as Segment has it.
void encode(const float* x, const Stored& m, Sign sign, std::int64_t row, std::int64_t col, std::int64_t n,
            const std::uint16_t* noise = nullptr, int byte = 0) {
  Segment s = segment_at(m, row, col);
  s.noise = noise;
  s.noise_byte = byte;
  with_format(m.format, sign, [&]<class F>() { F::template encode<Scalar>(x, n, s); });
}

// One of a weight's matrices, after an update of W: 0 is the weight, 1 + k moment k.
void encode_updated(const float* x, const Stored& m, Sign sign, std::int64_t row, std::int64_t col, std::int64_t n,
                    const Stored& W, int which) {
  if (info_of(m.format).random_bits == 0) return encode(x, m, sign, row, col, n);
  std::uint16_t bits[kColumns];
  NoisePlace place = noise_place(m.format, which);
  Noise noise = W.noise;
  noise.use = place.use;
  formats::fill_noise<Scalar>(noise, W.values.cols, row, col, n, bits);
  encode(x, m, sign, row, col, n, bits, place.byte);
}

// Counts what became of a block of one row, which is in `m` by now.
void count_encoded(const float* before, const float* result, const Stored& m, Sign sign, std::int64_t row,
                   std::int64_t col, std::int64_t n, RoundingCount& count) {
  float after[kColumns];
  decode(m, sign, row, col, n, after);
  count_rounding(before, result, after, n, count);
}

// Adds to `total`, for each sum of the rule, what the row gives.
void update_row(const Stored& W, std::span<const Stored> S, std::int64_t row, const float* g, const RuleStep& rule,
                RuleRun run, double* total, std::span<RoundingCount> rounding) {
  const RuleInfo& info = rule.rule();
  double lanes[kMaxSums][kNormLanes] = {};
  for (std::int64_t col = 0; col < W.values.cols; col += kColumns) {
    std::int64_t n = std::min(kColumns, W.values.cols - col);
    // Of the weight and of its moments.
    float now[1 + kMaxMoments][kColumns], before[1 + kMaxMoments][kColumns], numbers_of[kMaxSums][kColumns];
    float *x[1 + kMaxMoments] = {}, *numbers[kMaxSums];
    for (int k = 0; k < kMaxSums; ++k) numbers[k] = numbers_of[k];
    auto matrix = [&](int i) -> const Stored& { return i == 0 ? W : S[static_cast<std::size_t>(i - 1)]; };
    auto moment = [&](int i) { return i == 0 ? Moment{"weight"} : info.moments[static_cast<std::size_t>(i - 1)]; };
    auto matrices = static_cast<int>(1 + S.size());
    for (int i = 0; i < matrices; ++i) {
      load(matrix(i), moment(i), row, col, n, x[i] = now[i]);
      std::copy_n(x[i], n, before[i]);
    }
    run({x[0], x + 1, g + col, n, 1.0f, rule.constants(), numbers});
    for (int i = 0; i < matrices; ++i) {
      if (!info.writes(i)) continue;
      encode_updated(x[i], matrix(i), moment(i).sign, row, col, n, W, i);
      if (!rounding.empty())
        count_encoded(before[i], x[i], matrix(i), moment(i).sign, row, col, n, rounding[static_cast<std::size_t>(i)]);
    }
    for (int k = 0; k < info.sums; ++k)
      for (std::int64_t c = 0; c < n; ++c)
        lanes[k][c % kNormLanes] += static_cast<double>(numbers[k][c]) * numbers[k][c];
  }
  for (int k = 0; k < rule.rule().sums; ++k) total[k] += reduce_norm_lanes(lanes[k]);
}

}  // namespace

std::size_t workspace_bytes(const Expression& G) { return (static_cast<std::size_t>(G.in) + 1) * sizeof(float); }

Sums update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Context& context, std::span<RoundingCount> rounding) {
  RuleRun run = rule_loop(rule.rule(), Target::ref);
  Sums sums = {.of_squares = {}, .out = G.out, .in = G.in};
  for_each_row(G, context, [&](std::int64_t row, const float* g) {
    update_row(W, S, row, g, rule, run, sums.of_squares.data(), rounding);
  });
  return sums;
}

void materialize(const Matrix& D, const Expression& G, const Context& context) {
  for_each_row(G, context, [&](std::int64_t row, const float* g) {
    for (std::int64_t col = 0; col < G.in; col += kColumns)
      encode(g + col, D, Sign::any, row, col, std::min(kColumns, G.in - col));
  });
}

double sum_squares(const Expression& G, const Context& context) {
  double total = 0;
  for_each_row(G, context, [&](std::int64_t, const float* g) {
    double lanes[kNormLanes] = {};
    for (std::int64_t c = 0; c < G.in; ++c) lanes[c % kNormLanes] += static_cast<double>(g[c]) * g[c];
    total += reduce_norm_lanes(lanes);
  });
  return total;
}

void sum_squares_of_lines(const Expression& G, std::span<double> of_rows, std::span<double> of_columns,
                          const Context& context) {
  std::int64_t shard = columns_of_line_shard(G.in);
  std::fill(of_columns.begin(), of_columns.end(), 0.0);
  for_each_row(G, context, [&](std::int64_t row, const float* g) {
    double total = 0;
    for (std::int64_t from = 0; from < G.in; from += shard) {
      double part = 0;
      for (std::int64_t piece = from; piece < std::min(from + shard, G.in); piece += kLinePiece) {
        double lanes[kNormLanes] = {};
        for (std::int64_t c = piece; c < std::min(piece + kLinePiece, G.in); ++c) {
          double square = static_cast<double>(g[c]) * g[c];
          lanes[c % kNormLanes] += square;
          of_columns[static_cast<std::size_t>(c)] += square;
        }
        part += reduce_norm_lanes(lanes);
      }
      total += part;
    }
    of_rows[static_cast<std::size_t>(row)] = total;
  });
}

void recode(const Stored& to, const Stored& from, Sign sign) {
  FloatEnvironment ieee;
  float x[kColumns];
  for (std::int64_t row = 0; row < to.values.rows; ++row)
    for (std::int64_t col = 0; col < to.values.cols; col += kColumns) {
      std::int64_t n = std::min(kColumns, to.values.cols - col);
      decode(from, sign, row, col, n, x);
      encode(x, to, sign, row, col, n);
    }
}

}  // namespace forge::ref
