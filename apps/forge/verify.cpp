#include "apps/forge/verify.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "apps/forge/machine.h"
#include "forge/base/hash.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/update.h"
#include "forge/torch/executor.h"
#include "forge/torch/make_optimizer.h"
#include "forge/torch/stored_tensor.h"

namespace forge::app {
namespace {

constexpr int kUpdates = 3;

// A weight with its moments.
struct Weight {
  StoredTensor W;
  std::vector<StoredTensor> moments;

  Weight clone() const {
    auto copy = [](const StoredTensor& t) {
      return StoredTensor(t.format, t.values.clone(), t.rest.defined() ? t.rest.clone() : at::Tensor());
    };
    Weight all{copy(W), {}};
    for (const StoredTensor& m : moments) all.moments.push_back(copy(m));
    return all;
  }
};

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() &&
         (a.nbytes() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}
bool same_bytes(const StoredTensor& a, const StoredTensor& b) {
  return same_bytes(a.values, b.values) && (!a.rest.defined() || same_bytes(a.rest, b.rest));
}
bool same_bytes(const Weight& a, const Weight& b) {
  return same_bytes(a.W, b.W) && std::equal(a.moments.begin(), a.moments.end(), b.moments.begin(), b.moments.end(),
                                            [](const auto& x, const auto& y) { return same_bytes(x, y); });
}

// Some rows and columns of the weight.
struct Part {
  std::int64_t row, rows, col, cols;
};

// Runs on this thread alone.
class OneThread final : public Executor {
 public:
  int workers() const override { return 1; }
  void run(FunctionRef<void(int)> body) override { body(0); }
};

class Verification {
 public:
  explicit Verification(const VerifyOptions& o) : options_(o) {
    check_memory(static_cast<double>(o.out) * static_cast<double>(o.in) * sizeof(float), "the numbers of the weight");
    at::Generator generator = at::detail::createCPUGenerator(o.seed);
    auto random = [&](std::int64_t rows, std::int64_t cols) { return at::randn({rows, cols}, generator); };
    for (int i = 0; i < kUpdates; ++i) {
      dY_.push_back(random(o.tokens, o.out));
      X_.push_back(random(o.tokens, o.in));
    }
    Progress progress;
    for (int i = 0; i < kUpdates; ++i) {
      rules_.push_back(prepare_rule(o.rule, {}, progress));
      progress = next_progress(o.rule, {}, progress);
    }
    start_.W = in_format(random(o.out, o.in), o.weight, Sign::any);
    for (const Moment& moment : rules_[0].rule().moments)
      start_.moments.push_back(zeros_in_format(start_.W.values, o.state, moment.sign));
    fused_ = start_.clone();
    for (int i = 0; i < kUpdates; ++i) step(fused_, whole(), i, terms(i, whole()), AtExecutor(), best_target());
  }

  Finding equals_two_phase() const {
    Weight weight = start_.clone();
    at::Tensor D = at::empty({options_.out, options_.in}, at::kFloat);
    const Matrix d = as_matrix(D, {options_.out, options_.in});
    for (int i = 0; i < kUpdates; ++i) {
      const std::vector<Term> product = terms(i, whole());
      const Expression G = expression(product, whole());
      materialize(d, G, torch_context(G));
      step(weight, whole(), i, {Dense{d}}, AtExecutor(), best_target());
    }
    return {"equals the gradient multiplied out and then applied, as ordinary training does",
            same_bytes(weight, fused_)};
  }

  Finding one_thread() const {
    Weight weight = start_.clone();
    for (int i = 0; i < kUpdates; ++i) step(weight, whole(), i, terms(i, whole()), OneThread(), best_target());
    return {fmt::format("is the same on one thread as on {}", AtExecutor().workers()), same_bytes(weight, fused_)};
  }

  // The definition is plain loops: a few rows of the weight on it, in their place.
  Finding target(Target target) const {
    const Part part = {0, target == Target::ref ? std::min<std::int64_t>(options_.out, kRowsOfRef) : options_.out, 0,
                       options_.in};
    Weight weight = fused_.clone();
    copy_part(start_, weight, part);
    for (int i = 0; i < kUpdates; ++i) step(weight, part, i, terms(i, part), AtExecutor(), target);
    return {target == Target::ref
                ? fmt::format("is the same as the definition in plain loops, {} rows of it", part.rows)
                : fmt::format("is the same with {} instructions", name_of(target)),
            same_bytes(weight, fused_)};
  }

  Finding micro_batches() const {
    Weight weight = start_.clone();
    for (int i = 0; i < kUpdates; ++i) {
      std::vector<Term> pieces;
      const std::int64_t cuts[] = {0, options_.tokens / 4, options_.tokens / 2, options_.tokens - options_.tokens / 4,
                                   options_.tokens};
      for (int k = 0; k < 4; ++k) pieces.push_back(outer(i, whole(), cuts[k], cuts[k + 1]));
      step(weight, whole(), i, pieces, AtExecutor(), best_target());
    }
    return {"is the same from four micro-batches as from one batch of the same dY and X", same_bytes(weight, fused_)};
  }

  Finding shards(bool by_rows) const {
    const std::int64_t all = by_rows ? options_.out : options_.in;
    const std::int64_t cut = by_rows ? all / 2 : all / 2 / kBlockColumns * kBlockColumns;
    Weight weight = start_.clone();
    for (const auto& [from, n] : {std::pair{std::int64_t{0}, cut}, std::pair{cut, all - cut}}) {
      const Part part = by_rows ? Part{from, n, 0, options_.in} : Part{0, options_.out, from, n};
      for (int i = 0; i < kUpdates; ++i) step(weight, part, i, terms(i, part), AtExecutor(), best_target());
    }
    return {fmt::format("is the same in two shards by {}", by_rows ? "rows" : "columns"), same_bytes(weight, fused_)};
  }

  double chain_error() const {
    const Part part = {0, std::min<std::int64_t>(options_.out, 64), 0, options_.in};
    at::Tensor D = at::empty({part.rows, part.cols}, at::kFloat);
    const std::vector<Term> product = terms(0, part);
    const Expression G = expression(product, part);
    materialize(as_matrix(D, {part.rows, part.cols}), G, torch_context(G));
    const at::Tensor dY = dY_[0].slice(1, 0, part.rows).to(at::kDouble), X = X_[0].to(at::kDouble);
    const at::Tensor error = (D.to(at::kDouble) - dY.t().mm(X)).abs(), size = dY.abs().t().mm(X.abs());
    return (error / size).max().item<double>() / std::numeric_limits<float>::epsilon();
  }

 private:
  static constexpr std::int64_t kRowsOfRef = 8;

  Part whole() const { return {0, options_.out, 0, options_.in}; }

  Outer outer(int i, const Part& p, std::int64_t from, std::int64_t to) const {
    const at::Tensor &dY = dY_[static_cast<std::size_t>(i)], &X = X_[static_cast<std::size_t>(i)];
    const float *dy = dY.const_data_ptr<float>(), *x = X.const_data_ptr<float>();
    return {{dy + from * options_.out + p.row, DType::f32, to - from, p.rows, options_.out},
            {x + from * options_.in + p.col, DType::f32, to - from, p.cols, options_.in}};
  }
  std::vector<Term> terms(int i, const Part& p) const { return {outer(i, p, 0, options_.tokens)}; }
  static Expression expression(const std::vector<Term>& terms, const Part& p) {
    return {.out = p.rows, .in = p.cols, .terms = terms, .scale = 1};
  }

  // A part of a stored matrix, in its place.
  Stored part_of(const StoredTensor& t, const Part& p, const Noise& noise = {}) const {
    return shard_of(t.view({options_.out, options_.in}, noise), p.row, p.rows, p.col, p.cols);
  }

  void step(Weight& weight, const Part& p, int i, const std::vector<Term>& terms, Executor&& executor,
            Target target) const {
    const Expression G = expression(terms, p);
    const Noise noise = {.seed = options_.seed, .parameter = fnv1a("weight"), .step = i + 1};
    std::vector<Stored> S;
    for (const StoredTensor& m : weight.moments) S.push_back(part_of(m, p));
    std::vector<std::byte> workspace(workspace_bytes(G, executor.workers(), target));
    update(part_of(weight.W, p, noise), S, G, rules_[static_cast<std::size_t>(i)], {executor, workspace, target});
  }

  void copy_part(const Weight& from, Weight& to, const Part& p) const {
    auto rows = [&](const at::Tensor& a, const at::Tensor& b) {
      if (a.defined()) b.slice(0, p.row, p.row + p.rows).copy_(a.slice(0, p.row, p.row + p.rows));
    };
    rows(from.W.values, to.W.values), rows(from.W.rest, to.W.rest);
    for (std::size_t k = 0; k < from.moments.size(); ++k) {
      rows(from.moments[k].values, to.moments[k].values);
      rows(from.moments[k].rest, to.moments[k].rest);
    }
  }

  VerifyOptions options_;
  std::vector<at::Tensor> dY_, X_;
  std::vector<RuleStep> rules_;
  Weight start_, fused_;
};

}  // namespace

std::vector<Finding> verify(const VerifyOptions& options) {
  const Verification v(options);
  std::vector<Finding> all = {v.equals_two_phase(), v.one_thread(), v.micro_batches(), v.shards(true), v.shards(false)};
  for (const Target target : available_targets())
    if (target != best_target()) all.push_back(v.target(target));
  return all;
}

double chain_error(const VerifyOptions& options) { return Verification(options).chain_error(); }

}  // namespace forge::app
