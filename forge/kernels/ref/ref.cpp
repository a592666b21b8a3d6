#include "forge/kernels/ref/ref.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "forge/base/scalar.h"
#include "forge/base/widen.h"
#include "forge/formats/list.h"
#include "forge/kernels/float_environment.h"
#include "forge/kernels/norm_lanes.h"

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

template <class Rule, class WeightFormat, class StateFormat>
void update_row(void* w, void* const* s, const float* g, std::int64_t n, const typename Rule::Step& step) {
  auto* weight = static_cast<typename WeightFormat::Storage*>(w);
  for (std::int64_t c = 0; c < n; ++c) {
    Scalar x = WeightFormat::template decode<Scalar>(weight + c);
    Scalar moments[kMaxMoments];
    for (int k = 0; k < Rule::kMoments; ++k)
      moments[k] = StateFormat::template decode<Scalar>(static_cast<typename StateFormat::Storage*>(s[k]) + c);
    Rule::update(x, Scalar(g[c]), moments, step);
    WeightFormat::encode(x, weight + c);
    for (int k = 0; k < Rule::kMoments; ++k)
      StateFormat::encode(moments[k], static_cast<typename StateFormat::Storage*>(s[k]) + c);
  }
}

template <class F>
void with_format(DType dtype, F&& f) {
  FormatList::for_each([&]<class Format>() {
    if (Format::kDType == dtype) f.template operator()<Format>();
  });
}

}  // namespace

std::size_t workspace_bytes(const Expression& G) { return (static_cast<std::size_t>(G.in) + 1) * sizeof(float); }

void update(const Matrix& W, std::span<const Matrix> S, const Expression& G, const RuleStep& rule,
            const Context& context) {
  DType state_dtype = S.empty() ? DType::f32 : S[0].dtype;
  RuleList::for_each([&]<class Rule>() {
    const auto* step = std::get_if<typename Rule::Step>(&rule);
    if (!step) return;
    with_format(W.dtype, [&]<class WeightFormat>() {
      with_format(state_dtype, [&]<class StateFormat>() {
        for_each_row(G, context, [&](std::int64_t row, const float* g) {
          void* s[kMaxMoments] = {};
          for (int k = 0; k < Rule::kMoments; ++k) s[k] = S[k].row(row);
          update_row<Rule, WeightFormat, StateFormat>(W.row(row), s, g, G.in, *step);
        });
      });
    });
  });
}

void materialize(const Matrix& D, const Expression& G, const Context& context) {
  with_format(D.dtype, [&]<class Format>() {
    for_each_row(G, context, [&](std::int64_t row, const float* g) {
      auto* d = static_cast<typename Format::Storage*>(D.row(row));
      for (std::int64_t c = 0; c < G.in; ++c) Format::encode(Scalar(g[c]), d + c);
    });
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

}  // namespace forge::ref
