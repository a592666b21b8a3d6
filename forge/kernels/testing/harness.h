#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "forge/formats/list.h"
#include "forge/kernels/line_sums.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/norm.h"
#include "forge/kernels/testing/gradients.h"
#include "forge/kernels/testing/rule_cases.h"
#include "forge/kernels/testing/weight.h"
#include "forge/kernels/update.h"

namespace forge::testing {

// The tables that the contracts are checked over. 4100 columns are more than one strip, 600 tokens more than one
// block of them and long enough for narrow strips.
inline const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {{1, 1},    {7, 17},  {13, 33}, {64, 64}, {37, 515}, {200, 3},
                                         {5, 4100}, {1, 300}, {0, 5},   {5, 0},   {0, 0}};
  return all;
}

inline const std::vector<GradientSpec>& gradient_specs() {
  using enum TermSpec::Kind;
  constexpr DType f32 = DType::f32, bf16 = DType::bf16, f16 = DType::f16;
  static const std::vector<GradientSpec> all = {
      {"no term", {}, 2},
      {"no term, negative scale", {}, -1},
      {"no token", {{outer, 0}}},
      {"1 token", {{outer, 1}}},
      {"5 tokens, scaled", {{outer, 5}}, 0.3f},
      {"64 tokens of bf16", {{outer, 64, 1, bf16, bf16}}, -0.7f},
      {"9 tokens of fp16", {{outer, 9, 1.1f, f16, f16}}, 0.6f},
      {"600 tokens", {{outer, 600, 1, f32, bf16}}, 1.5f},
      {"rows", {{rows, 41}}, 0.5f},
      {"no row", {{rows, 0}}},
      {"dense", {{dense}}},
      {"dense, scaled", {{dense}}, -1.3f},
      {"dense of bf16", {{dense, 0, 0.7f, bf16}}},
      {"minus zeros", {{minus_zeros}}},
      {"collapsed, then a token", {{dense}, {outer, 3}}},
      {"everything",
       {{outer, 3, 0.6f},
        {rows, 9, -1.7f},
        {dense, 0, 1.1f},
        {outer, 7, -1.25f, bf16, f32},
        {outer, 0},
        {outer, 4},
        {dense, 0, 3, bf16},
        {rows, 4, 0.9f, bf16},
        {rows, 0},
        {outer, 5, 1, f32, bf16},
        {outer, 2, 0.8f, f16, bf16},
        {rows, 3, 1.3f, f16},
        {dense, 0, 0.7f, f16},
        {outer, 3, 1, f32, f16}},
       0.37f},
  };
  return all;
}

// The comparison of the contracts: every byte of W and S, and nothing beside them written.
inline ::testing::AssertionResult same_bits(const Weight& a, const Weight& b) {
  if (!a.canaries_live() || !b.canaries_live()) return ::testing::AssertionFailure() << "written beside the weight";
  if (!same_bytes(a.W, b.W)) return ::testing::AssertionFailure() << "W differs";
  for (std::size_t k = 0; k < a.S.size(); ++k)
    if (!same_bytes(a.S[k], b.S[k])) return ::testing::AssertionFailure() << "moment " << k << " differs";
  return ::testing::AssertionSuccess();
}

// A NaN equals every NaN.
inline bool same_sums(const Sums& a, const Sums& b) {
  auto same = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
  return a.out == b.out && a.in == b.in &&
         std::equal(a.of_squares.begin(), a.of_squares.end(), b.of_squares.begin(), same);
}

// What an operation runs on.
struct Place {
  Executor& executor;
  Target target;
};

// Calls f(context) with a workspace of exactly the bytes asked for, at an odd multiple of 8, and looks after it.
template <class F>
auto in_context(const Place& place, const Expression& G, F&& f) {
  Workspace workspace(workspace_bytes(G, place.executor.workers(), place.target), 8);
  struct Look {
    const Workspace& workspace;
    ~Look() { EXPECT_TRUE(workspace.canaries_live()) << "written outside the workspace"; }
  } look{workspace};
  return f(Context{place.executor, workspace.span(), place.target});
}

inline Sums run_update(const Place& place, Weight& weight, const Expression& G, const RuleStep& rule,
                       std::span<RoundingCount> rounding = {}) {
  return in_context(place, G,
                    [&](const Context& c) { return update(weight.W.view(), weight.moments(), G, rule, c, rounding); });
}
inline Buffer run_materialize(const Place& place, const Expression& G, DType dtype = DType::f32) {
  Buffer D(G.out, G.in, dtype, 5);
  in_context(place, G, [&](const Context& c) { materialize(D.view(), G, c); });
  return D;
}
inline double run_sum_squares(const Place& place, const Expression& G) {
  return in_context(place, G, [&](const Context& c) { return sum_squares(G, c); });
}
struct Lines {
  std::vector<double> of_rows, of_columns;
};
inline Lines run_sum_squares_of_lines(const Place& place, const Expression& G) {
  // Not zeros: they are overwritten.
  Lines lines = {std::vector<double>(static_cast<std::size_t>(G.out), -1),
                 std::vector<double>(static_cast<std::size_t>(G.in), -1)};
  in_context(place, G, [&](const Context& c) { sum_squares_of_lines(G, lines.of_rows, lines.of_columns, c); });
  return lines;
}

// The rule of the list, or any other with the same words, applied to each element of a multiplied-out G.
template <class Rule>
void apply(Weight& weight, const std::vector<float>& g, const typename Rule::Step& step) {
  constexpr RuleInfo kInfo = rule_info<Rule>();
  constexpr std::size_t kMoments = Rule::kMoments.size();
  Matrix shape = weight.W.view().values;
  const float* next = g.data();
  for (std::int64_t r = 0; r < shape.rows; ++r) {
    std::vector<float> w = weight.W.row(r), s[kMaxMoments];
    for (std::size_t k = 0; k < kMoments; ++k) {
      Extent extent = kInfo.moments[k].extent;
      s[k] = weight.S[k].row(extent == Extent::column ? 0 : r);
      if (extent == Extent::row) s[k].assign(w.size(), s[k][0]);
    }
    for (std::size_t c = 0; c < w.size(); ++c) {
      Scalar x(w[c]), moments[kMaxMoments];
      for (std::size_t k = 0; k < kMoments; ++k) moments[k] = Scalar(s[k][c]);
      Scalar numbers[kMaxSums];
      update_element<Rule>(x, Scalar(kInfo.reads_gradient ? *next++ : 0), moments, step, numbers);
      w[c] = x.x;
      for (std::size_t k = 0; k < kMoments; ++k) s[k][c] = moments[k].x;
    }
    if (kInfo.writes_weight) weight.W.set_updated_row(r, w, weight.W.noise, 0);
    for (std::size_t k = 0; k < kMoments && kInfo.writes_moments; ++k)
      weight.S[k].set_updated_row(r, s[k], weight.W.noise, static_cast<int>(1 + k));
  }
}
inline void apply(Weight& weight, const std::vector<float>& g, const RuleStep& rule) {
  RuleList::for_each([&]<class Rule>() {
    if (const auto* step = rule.get<Rule>()) apply<Rule>(weight, g, *step);
  });
}

inline std::string describe(Shape shape, const GradientSpec& spec) {
  std::ostringstream text;
  text << "(" << shape.out << ", " << shape.in << "), " << spec.name;
  return text.str();
}

}  // namespace forge::testing
