#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "bench/gpu_check/mirror.h"
#include "bench/gpu_check/parts.h"
#include "forge/base/executor.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/testing/gradients.h"
#include "forge/kernels/testing/weight.h"
#include "forge/kernels/update.h"

// What parts of the check share: kernels of the device on matrices of the host, and what theirs is compared with.
namespace forge::gpu_check {

using namespace forge::testing;

// Counts comparisons, and remembers the first that failed.
class Check {
 public:
  Check(std::string part, std::string name) : part_(std::move(part)), name_(std::move(name)) {}
  void expect(bool right, const std::string& what) {
    ++runs_;
    if (right) return;
    if (wrong_++ == 0) first_ = what;
  }
  bool report() const {
    Row row(part_);
    row.add("check", name_).add("runs", runs_).add("wrong", wrong_);
    if (wrong_ > 0) row.add("first", first_);
    return wrong_ == 0;
  }

 private:
  std::string part_, name_, first_;
  int runs_ = 0, wrong_ = 0;
};

template <class... T>
std::string text_of(const T&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// f(context) on plain loops.
template <class F>
auto on_ref(const Expression& G, F&& f) {
  SerialExecutor serial;
  std::vector<std::byte> workspace(workspace_bytes(G, 1, Target::ref));
  return f(Context{serial, workspace, Target::ref});
}
inline Sums update_on_ref(Weight& weight, const Expression& G, const RuleStep& rule) {
  return on_ref(G, [&](const Context& c) { return update(weight.W.view(), weight.moments(), G, rule, c); });
}
// kernel: one of launch.h or hopper.h.
using Update = void(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                    const cuda::Launch& launch);
inline void update_on_device(Weight& weight, const Expression& G, const RuleStep& rule, const cuda::Launch& launch,
                             Update& kernel = cuda::update) {
  Mirror mirror;
  std::vector<Term> terms;
  Stored W = mirror.stored(weight.W.view());
  std::vector<Stored> S = mirror.stored(weight.moments());
  kernel(W, S, mirror.expression(G, terms), rule, launch);
  mirror.copy_back();
}
// Doubles of the host, and where they are on the device.
class Doubles {
 public:
  Doubles(Mirror& mirror, std::int64_t n) : host_(1, 2 * n, DType::f32), there_(mirror.matrix(host_.view())) {}
  double* there() const { return static_cast<double*>(there_.data); }
  // Once the mirror has copied back.
  double operator[](std::int64_t i) const {
    double value = 0;
    std::memcpy(&value, static_cast<const double*>(host_.view().data) + i, sizeof(value));
    return value;
  }

 private:
  Buffer host_;  // of as many bytes
  Matrix there_;
};

inline Sums update_rows_on_device(Weight& weight, const Buffer& D, const RuleStep& rule) {
  Mirror mirror;
  const std::int64_t rows = D.view().rows, count = rule.rule().sums;
  Doubles row_sums(mirror, rows * count), total(mirror, count);
  Stored W = mirror.stored(weight.W.view());
  std::vector<Stored> S = mirror.stored(weight.moments());
  cuda::WeightInMemory one = {W, S, Dense{mirror.matrix(D.view())}, 1, row_sums.there()};
  cuda::update_rows({&one, 1}, rule, {});
  if (count > 0) cuda::add_row_sums(total.there(), row_sums.there(), rows, static_cast<int>(count), {});
  mirror.copy_back();
  Sums sums = {.of_squares = {}, .out = rows, .in = D.view().cols};
  for (std::int64_t k = 0; k < count; ++k) sums.of_squares[static_cast<std::size_t>(k)] = total[k];
  return sums;
}
using Materialize = void(const Matrix& D, const Expression& G, const cuda::Launch& launch);
inline Buffer materialize_on_device(const Expression& G, const cuda::Launch& launch,
                                    Materialize& kernel = cuda::materialize) {
  Buffer D(G.out, G.in, DType::f32, 0);
  Mirror mirror;
  std::vector<Term> terms;
  kernel(mirror.matrix(D.view()), mirror.expression(G, terms), launch);
  mirror.copy_back();
  return D;
}

// A payload of NaN aside, of which there is none here.
inline bool same_bytes_of(const Weight& a, const Weight& b) {
  bool same = same_bytes(a.W, b.W) && a.canaries_live() && b.canaries_live();
  for (std::size_t k = 0; k < a.S.size(); ++k) same = same && same_bytes(a.S[k], b.S[k]);
  return same;
}
inline Weight random_weight(Shape shape, Storage storage, const RuleInfo& rule, Random& random) {
  return Weight(shape, storage, rule, [&] { return random.uniform(-1, 1); });
}
inline std::string name_of_case(const RuleStep& rule, Storage storage, Shape shape) {
  return text_of(rule.name(), ", ", storage, ", (", shape.out, ", ", shape.in, ")");
}

struct GradientError {
  double relative;  // ‖D − D₆₄‖ / ‖D₆₄‖
  double largest;   // of |D − D₆₄| / Σ |dy x|
};
// Of D = dYᵀX over some of its elements, D₆₄ in double precision.
inline GradientError error_of(const Buffer& D, const Outer& term, Random& random) {
  double error = 0, norm = 0, largest = 0;
  for (int i = 0; i < 4000; ++i) {
    std::int64_t r = random.below(term.dY.cols), c = random.below(term.X.cols);
    double exact = 0, magnitude = 0;
    for (std::int64_t t = 0; t < term.X.rows; ++t) {
      double product = static_cast<double>(number(term.dY, t, r)) * number(term.X, t, c);
      exact += product;
      magnitude += std::abs(product);
    }
    double difference = std::abs(D.at(r, c) - exact);
    error += difference * difference;
    norm += exact * exact;
    if (!(difference <= largest * magnitude)) largest = difference / magnitude;
  }
  return {std::sqrt(error / norm), largest};
}

}  // namespace forge::gpu_check
