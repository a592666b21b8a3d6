#include "forge/torch/gpu_kernels.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
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

cuda::Launch launch_on(const Place& place, const cuda::OnDevice& numbers = {}) {
  c10::impl::VirtualGuardImpl device(place.device.type());
  return {.stream = handle_of(device.getStream(place.device)), .numbers = numbers, .exact = place.exact};
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
    expression_ = {n, G.in, terms_, G.scale, G.scale_on_device};
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

// The moments of rows [from, from + n). One of columns is that of each row.
std::vector<Stored> rows_of(std::span<const Stored> S, const RuleInfo& rule, std::int64_t from, std::int64_t n) {
  std::vector<Stored> some;
  for (std::size_t k = 0; k < S.size(); ++k)
    some.push_back(rule.moments[k].extent == Extent::column ? S[k] : rows_of(S[k], from, n));
  return some;
}

}  // namespace

void GpuKernels::check_rule(const char* who, const RuleInfo& rule, bool count_rounding) const {
  check(cuda::has_kernel(rule), who, ": ", rule.name,
        " has no kernel for a GPU, where rules of one's own are not there yet; take one of the library's, or train on "
        "the CPU");
  check(!count_rounding, who, ": rounding is not counted on a GPU; leave count_rounding out, or train on the CPU");
}

// What a pass sums, on the device.
class GpuKernels::PassSums {
 public:
  PassSums(const Place& place, const Expression& G, int count) : out_(G.out), in_(G.in), count_(count) {
    if (count > 0) of_rows_ = at::empty({G.out, count}, at::TensorOptions(at::kDouble).device(place.device));
  }
  // Where those of the rows from `row` on go.
  double* of_rows(std::int64_t row) const {
    return count_ > 0 ? of_rows_.mutable_data_ptr<double>() + row * count_ : nullptr;
  }
  // The pass behind this one. Which it is the host knows, whatever the sums; what its constants are, the device.
  std::optional<Pass> next(const cuda::Operations& operations, const Place& place, const Pass& pass) const {
    auto rule = pass.rule.next({.of_squares = {}, .out = out_, .in = in_});
    if (!rule) return std::nullopt;
    check(count_ > 0 || !pass.constants.defined(), "update: ", pass.rule.name(), " has its constants from the device");
    if (count_ == 0) return Pass{*rule, {}};
    at::Tensor total = at::empty({count_}, of_rows_.options());
    operations.add_row_sums(total.mutable_data_ptr<double>(), of_rows(0), out_, count_, launch_on(place));
    at::Tensor constants = at::empty({RuleStep::kMostBytes}, of_rows_.options().dtype(at::kByte));
    operations.next_pass(constants.mutable_data_ptr(), pass.rule, total.const_data_ptr<double>(), out_, in_,
                         launch_on(place, {.constants = pass.constants_on_device()}));
    return Pass{*rule, constants};
  }

 private:
  std::int64_t out_, in_;
  int count_;
  at::Tensor of_rows_;
};

std::optional<Pass> GpuKernels::update(const Place& place, const Stored& W, std::span<const Stored> S,
                                       const Expression& G, const Pass& pass, std::span<RoundingCount> rounding) const {
  const RuleStep& rule = pass.rule;
  check_rule("update", rule.rule(), !rounding.empty());
  c10::DeviceGuard guard(place.device);
  ScopedPurpose purpose(Purpose::workspace);
  const PassSums sums(place, G, rule.rule().sums);
  const cuda::Launch launch = launch_on(place, {.scale = G.scale_on_device, .constants = pass.constants_on_device()});
  const Dense* D = only_dense(G);
  if (D || !rule.rule().reads_gradient) {
    cuda::WeightInMemory one = {W, S, D ? *D : Dense{}, G.scale, sums.of_rows(0)};
    operations_.update_rows({&one, 1}, rule, launch);
  } else if (cuda::is_fused(rule.rule(), W, S)) {
    operations_.update(W, S, G, rule, launch);
  } else {
    update_by_slabs(place, W, S, G, pass, sums);
  }
  return sums.next(operations_, place, pass);
}

void GpuKernels::update_all(const Place& place, std::span<const DenseUpdate> updates, const RuleStep& rule) const {
  c10::DeviceGuard guard(place.device);
  std::vector<cuda::WeightInMemory> weights;
  for (const DenseUpdate& one : updates) weights.push_back({one.W, one.S, one.D, one.scale});
  operations_.update_rows(weights, rule, launch_on(place));
}

template <class F>
void GpuKernels::for_each_slab(const Place& place, const Expression& G, F&& f) const {
  const std::int64_t most = std::min(rows_of_slab(G, slab_bytes_), G.out);
  at::Tensor workspace = at::empty({most, G.in}, at::TensorOptions(at::kFloat).device(place.device));
  for (std::int64_t from = 0; from < G.out; from += most) {
    std::int64_t n = std::min(most, G.out - from);
    Slab slab(place, G, from, n);
    Matrix D = {workspace.data_ptr(), DType::f32, n, G.in, G.in};
    operations_.materialize(D, slab.expression(), launch_on(place, {.scale = G.scale_on_device}));
    f(from, D);
  }
}

void GpuKernels::update_by_slabs(const Place& place, const Stored& W, std::span<const Stored> S, const Expression& G,
                                 const Pass& pass, const PassSums& sums) const {
  for_each_slab(place, G, [&](std::int64_t from, const Matrix& D) {
    std::vector<Stored> moments = rows_of(S, pass.rule.rule(), from, D.rows);
    cuda::WeightInMemory some = {rows_of(W, from, D.rows), moments, Dense{D}, 1, sums.of_rows(from)};
    operations_.update_rows({&some, 1}, pass.rule, launch_on(place, {.constants = pass.constants_on_device()}));
  });
}

void GpuKernels::sum_squares_of_lines(const Place& place, const Expression& G, std::span<double> of_rows,
                                      std::span<double> of_columns) const {
  c10::DeviceGuard guard(place.device);
  ScopedPurpose purpose(Purpose::workspace);
  auto doubles = at::TensorOptions(at::kDouble).device(place.device);
  at::Tensor rows = at::empty({G.out}, doubles), columns = at::zeros({G.in}, doubles);
  for_each_slab(place, G, [&](std::int64_t from, const Matrix& D) {
    operations_.sum_squares_of_lines(rows.mutable_data_ptr<double>() + from, columns.mutable_data_ptr<double>(), D,
                                     launch_on(place));
  });
  at::Tensor here = at::cat({rows, columns}).cpu();
  const auto* sums = here.const_data_ptr<double>();
  std::copy_n(sums, G.out, of_rows.begin());
  std::copy_n(sums + G.out, G.in, of_columns.begin());
}

void GpuKernels::materialize(const Place& place, const Matrix& D, const Expression& G) const {
  c10::DeviceGuard guard(place.device);
  operations_.materialize(D, G, launch_on(place, {.scale = G.scale_on_device}));
}

// The chain's kernels are launched either way, for the host does not know whether they are needed.
at::Tensor GpuKernels::sum_squares(const Place& place, const Expression& G, const std::optional<Known>& known) const {
  c10::DeviceGuard guard(place.device);
  ScopedPurpose purpose(Purpose::workspace);
  auto bytes = operations_.norm_workspace_bytes(G);
  auto on = at::TensorOptions().device(place.device);
  at::Tensor workspace = at::empty({static_cast<std::int64_t>(bytes)}, on.dtype(at::kByte));
  at::Tensor sum = known ? known->value.clone() : at::empty({}, on.dtype(at::kDouble));
  auto* data = static_cast<std::byte*>(workspace.data_ptr());
  const float* skip = known ? known->holds.const_data_ptr<float>() : nullptr;
  operations_.sum_squares(sum.mutable_data_ptr<double>(), G, {data, bytes},
                          launch_on(place, {.scale = G.scale_on_device, .skip = skip}));
  return sum;
}

}  // namespace forge
