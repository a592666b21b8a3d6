#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "forge/formats/list.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/norm.h"
#include "forge/kernels/testing/gradients.h"
#include "forge/kernels/testing/rule_cases.h"
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

// A weight with its moments. The numbers come from next(); second moments are not negative.
struct Weight {
  Buffer W;
  std::vector<Buffer> S;

  template <class Next>
  Weight(Shape shape, DType weight, DType state, int moments, Next&& next) : W(shape.out, shape.in, weight) {
    W.fill(next);
    for (int k = 0; k < moments; ++k)
      S.emplace_back(shape.out, shape.in, state, 2 + k).fill([&] { return k == 1 ? std::abs(next()) : next(); });
  }

  std::vector<Matrix> moments() {
    std::vector<Matrix> views;
    for (Buffer& s : S) views.push_back(s.view());
    return views;
  }
  bool canaries_live() const {
    return W.canaries_live() && std::all_of(S.begin(), S.end(), [](const Buffer& s) { return s.canaries_live(); });
  }
};

// The comparison of the contracts: every byte of W and S, and nothing beside them written.
inline ::testing::AssertionResult same_bits(const Weight& a, const Weight& b) {
  auto differ = [](const Buffer& x, const Buffer& y) { return x.bytes() != y.bytes(); };
  if (!a.canaries_live() || !b.canaries_live()) return ::testing::AssertionFailure() << "written beside the weight";
  if (differ(a.W, b.W)) return ::testing::AssertionFailure() << "W differs";
  for (std::size_t k = 0; k < a.S.size(); ++k)
    if (differ(a.S[k], b.S[k])) return ::testing::AssertionFailure() << "moment " << k << " differs";
  return ::testing::AssertionSuccess();
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

inline void run_update(const Place& place, Weight& weight, const Expression& G, const RuleStep& rule) {
  in_context(place, G, [&](const Context& c) { update(weight.W.view(), weight.moments(), G, rule, c); });
}
inline Buffer run_materialize(const Place& place, const Expression& G, DType dtype = DType::f32) {
  Buffer D(G.out, G.in, dtype, 5);
  in_context(place, G, [&](const Context& c) { materialize(D.view(), G, c); });
  return D;
}
inline double run_sum_squares(const Place& place, const Expression& G) {
  return in_context(place, G, [&](const Context& c) { return sum_squares(G, c); });
}

// The rule of the list, or any other with the same words, applied to each element of a multiplied-out G.
template <class Rule>
void apply(Weight& weight, const std::vector<float>& g, const typename Rule::Step& step) {
  Matrix W = weight.W.view();
  for (std::int64_t r = 0, i = 0; r < W.rows; ++r)
    for (std::int64_t c = 0; c < W.cols; ++c, ++i) {
      Scalar w(weight.W.at(r, c)), moments[kMaxMoments];
      for (int k = 0; k < Rule::kMoments; ++k) moments[k] = Scalar(weight.S[static_cast<std::size_t>(k)].at(r, c));
      Rule::update(w, Scalar(g[static_cast<std::size_t>(i)]), moments, step);
      weight.W.set(r, c, w.x);
      for (int k = 0; k < Rule::kMoments; ++k) weight.S[static_cast<std::size_t>(k)].set(r, c, moments[k].x);
    }
}
inline void apply(Weight& weight, const std::vector<float>& g, const RuleStep& rule) {
  RuleList::for_each([&]<class Rule>() {
    if (const auto* step = std::get_if<typename Rule::Step>(&rule)) apply<Rule>(weight, g, *step);
  });
}

// Calls f(weight dtype, state dtype): state dtypes once where the rule keeps none.
template <class F>
void for_each_storage(int moments, F&& f) {
  for (DType weight : FormatList::kDTypes)
    for (DType state : FormatList::kDTypes)
      if (moments > 0 || state == DType::f32) f(weight, state);
}

inline std::string describe(Shape shape, const GradientSpec& spec) {
  std::ostringstream text;
  text << "(" << shape.out << ", " << shape.in << "), " << spec.name;
  return text.str();
}

}  // namespace forge::testing
