#include "forge/torch/gpu_kernels.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <vector>

#include "forge/base/error.h"
#include "forge/kernels/cuda/choose_kernel.h"
#include "forge/torch/allocation.h"

namespace forge {
namespace {

// A function template, so that a torch whose streams do not tell their handle compiles it too.
template <class Stream>
cuda::Stream handle_of(const Stream& stream) {
  if constexpr (requires { stream.native_handle(); }) {
    return stream.native_handle();
  } else {
    check(stream.id() == 0, "this version of torch does not tell which stream is the current one of ",
          stream.device().str(), "; use the default stream, or torch 2.12 or later");
    return nullptr;
  }
}

cuda::Launch launch_on(const Place& place) {
  c10::impl::VirtualGuardImpl device(place.device.type());
  return {.stream = handle_of(device.getStream(place.device)), .numbers = {}, .exact = place.exact};
}

Matrix rows_of(const Matrix& m, std::int64_t from, std::int64_t n) {
  return m.data == nullptr ? m : Matrix{m.row(from), m.dtype, n, m.cols, m.stride};
}

// A weight or a moment, as a shard of it.
Stored rows_of(const Stored& all, std::int64_t from, std::int64_t n) {
  Stored some = {all.format, rows_of(all.values, from, n), rows_of(all.rest, from, n), all.noise};
  if (some.noise.in == 0) some.noise.in = all.values.cols;
  some.noise.row += from;
  return some;
}

ConstMatrix columns_of(const ConstMatrix& m, std::int64_t from, std::int64_t n) {
  return {m.rows == 0 ? m.data : m.at(0, from), m.dtype, m.rows, n, m.stride};
}

// Rows [from, from + n) of the gradient.
class Slab {
 public:
  Slab(const Place& place, const Expression& G, std::int64_t from, std::int64_t n) {
    auto of = [&](const Outer& t) -> Term { return Outer{columns_of(t.dY, from, n), t.X, t.scale}; };
    auto of_dense = [&](const Dense& t) -> Term {
      return Dense{{t.D.row(from), t.D.dtype, n, t.D.cols, t.D.stride}, t.scale};
    };
    // Kernels leave out what is no row of theirs.
    auto of_rows = [&](const Rows& t) -> Term {
      at::Tensor index = at::for_blob(const_cast<std::int64_t*>(t.index), {t.values.rows})
                             .options(at::TensorOptions(at::kLong).device(place.device))
                             .target_device(place.device)
                             .make_tensor();
      shifted_.push_back(index.sub(from));
      return Rows{shifted_.back().const_data_ptr<std::int64_t>(), t.values, t.scale};
    };
    for (const Term& term : G.terms) {
      if (const auto* outer = std::get_if<Outer>(&term)) terms_.push_back(of(*outer));
      if (const auto* dense = std::get_if<Dense>(&term)) terms_.push_back(of_dense(*dense));
      if (const auto* rows = std::get_if<Rows>(&term)) terms_.push_back(of_rows(*rows));
    }
    expression_ = {n, G.in, terms_, G.scale};
  }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  const Expression& expression() const { return expression_; }

 private:
  std::vector<at::Tensor> shifted_;
  std::vector<Term> terms_;
  Expression expression_;
};

// Whole tiles.
std::int64_t rows_of_slab(const Expression& G, std::int64_t bytes) {
  constexpr std::int64_t kTile = 128;
  return std::max(bytes / (4 * std::max<std::int64_t>(G.in, 1)) / kTile * kTile, kTile);
}

const Dense* only_dense(const Expression& G) { return G.terms.size() == 1 ? std::get_if<Dense>(&G.terms[0]) : nullptr; }

}  // namespace

void GpuKernels::check_rule(const char* who, const RuleInfo& rule, bool count_rounding) const {
  check(cuda::has_kernel(rule), who, ": ", rule.name,
        " has no kernel for a GPU, where rules that need a sum over the weight and rules of one's own are not there "
        "yet; take AdamW or another element-wise rule, or train on the CPU");
  check(!count_rounding, who, ": rounding is not counted on a GPU; leave count_rounding out, or train on the CPU");
}

Sums GpuKernels::update(const Place& place, const Stored& W, std::span<const Stored> S, const Expression& G,
                        const RuleStep& rule, std::span<RoundingCount> rounding) const {
  check_rule("update", rule.rule(), !rounding.empty());
  c10::DeviceGuard guard(place.device);
  if (const Dense* D = only_dense(G)) {
    cuda::WeightInMemory one = {W, S, *D, G.scale};
    operations_.update_rows({&one, 1}, rule, launch_on(place));
  } else if (cuda::is_fused(rule.rule(), W, S)) {
    operations_.update(W, S, G, rule, launch_on(place));
  } else {
    update_by_slabs(place, W, S, G, rule);
  }
  return {.of_squares = {}, .out = G.out, .in = G.in};
}

void GpuKernels::update_by_slabs(const Place& place, const Stored& W, std::span<const Stored> S, const Expression& G,
                                 const RuleStep& rule) const {
  ScopedPurpose purpose(Purpose::workspace);
  const std::int64_t most = std::min(rows_of_slab(G, slab_bytes_), G.out);
  at::Tensor workspace = at::empty({most, G.in}, at::TensorOptions(at::kFloat).device(place.device));
  std::vector<Stored> moments(S.size());
  for (std::int64_t from = 0; from < G.out; from += most) {
    std::int64_t n = std::min(most, G.out - from);
    Slab slab(place, G, from, n);
    Matrix D = {workspace.data_ptr(), DType::f32, n, G.in, G.in};
    operations_.materialize(D, slab.expression(), launch_on(place));
    std::ranges::transform(S, moments.begin(), [&](const Stored& m) { return rows_of(m, from, n); });
    cuda::WeightInMemory some = {rows_of(W, from, n), moments, Dense{D}};
    operations_.update_rows({&some, 1}, rule, launch_on(place));
  }
}

void GpuKernels::materialize(const Place& place, const Matrix& D, const Expression& G) const {
  c10::DeviceGuard guard(place.device);
  operations_.materialize(D, G, launch_on(place));
}

double GpuKernels::sum_squares(const Place& place, const Expression& G) const {
  c10::DeviceGuard guard(place.device);
  ScopedPurpose purpose(Purpose::workspace);
  auto bytes = operations_.norm_workspace_bytes(G);
  auto on = at::TensorOptions().device(place.device);
  at::Tensor workspace = at::empty({static_cast<std::int64_t>(bytes)}, on.dtype(at::kByte));
  at::Tensor sum = at::empty({}, on.dtype(at::kDouble));
  auto* data = static_cast<std::byte*>(workspace.data_ptr());
  operations_.sum_squares(sum.data_ptr<double>(), G, {data, bytes}, launch_on(place));
  return sum.item<double>();
}

}  // namespace forge
