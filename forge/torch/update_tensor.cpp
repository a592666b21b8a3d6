#include "forge/torch/update_tensor.h"

#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "forge/base/error.h"
#include "forge/torch/allocation.h"
#include "forge/torch/matrix_view.h"
#include "forge/torch/orthogonal.h"

namespace forge {
namespace {

void bump(const at::Tensor& t) {
  if (t.defined() && !t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}
void bump(const StoredTensor& t) { bump(t.values), bump(t.rest); }

// The passes over one weight.
struct Passes {
  Place place;
  Stored W;
  std::span<const Stored> S;
  std::span<RoundingCount> rounding;
  at::Tensor direction;  // of the pass before, orthogonal
  Term dense;

  // The first: that of the rule or, where some moments are of rows and columns, with these brought up to date on the
  // host.
  RuleStep first(const RuleStep& rule, const Expression& G, at::ArrayRef<StoredTensor> moments) const {
    if (!rule.rule().with_lines) return rule;
    std::vector<double> of_rows(static_cast<std::size_t>(G.out)), of_columns(static_cast<std::size_t>(G.in));
    kernels_of(place.device.type()).sum_squares_of_lines(place, G, of_rows, of_columns);
    at::Tensor rows = moments[0].values.cpu(), columns = moments[1].values.cpu();
    auto numbers = [](const at::Tensor& m) {
      return std::span(m.mutable_data_ptr<float>(), static_cast<std::size_t>(m.numel()));
    };
    RuleStep first = rule.rule().with_lines(rule, {of_rows, of_columns}, numbers(rows), numbers(columns));
    moments[0].values.copy_(rows);
    moments[1].values.copy_(columns);
    return first;
  }

  // Runs one, and gives the next.
  std::optional<Pass> run(const Pass& pass, const Expression& G) {
    const RuleInfo& rule = pass.rule.rule();
    std::span<const Stored> moments = S.first(rule.moments.size());
    std::span<RoundingCount> counts = rounding.first(std::min(rounding.size(), 1 + moments.size()));
    const DeviceKernels& kernels = kernels_of(place.device.type());
    if (!rule.orthogonalized) return kernels.update(place, W, moments, G, pass, counts);
    ScopedPurpose purpose(Purpose::direction);
    direction = at::empty({G.out, G.in}, at::TensorOptions(at::kFloat).device(place.device));
    RoundingCount of_weight = counts.empty() ? RoundingCount{} : counts[0];
    auto next = kernels.update(place, as_matrix(direction, {G.out, G.in}), moments, G, pass, counts);
    if (!counts.empty()) counts[0] = of_weight;  // the direction is none
    orthogonalize_(direction, rule.orthogonalized(pass.rule));
    return next;
  }

  // What a pass behind the first has as its gradient: the direction, where there is one.
  Expression gradient(const Expression& G) {
    if (!direction.defined()) return G;
    dense = Dense{as_matrix(direction, {G.out, G.in})};
    return {G.out, G.in, std::span(&dense, 1)};
  }
};

}  // namespace

bool UpdatesTogether::take(const Place& place, const Stored& W, std::span<const Stored> S, const Expression& G,
                           const RuleStep& rule) {
  const RuleInfo& info = rule.rule();
  const Dense* D = only_dense(G);
  if (!D || G.scale_on_device || !is_element_wise(info) || info.next_pass) return false;
  auto same = [&](const Group& group) { return group.place.device == place.device && group.rule == rule; };
  auto group = std::ranges::find_if(groups_, same);
  if (group == groups_.end()) group = groups_.insert(group, {place, rule, {}});
  group->updates.push_back({W, {S.begin(), S.end()}, *D, G.scale});
  return true;
}

void UpdatesTogether::run() {
  for (const Group& group : std::exchange(groups_, {}))
    kernels_of(group.place.device.type()).update_all(group.place, group.updates, group.rule);
}

UpdatesTogether::~UpdatesTogether() {
  try {
    run();
  } catch (...) {  // NOLINT: what failed first is told
  }
}

void update_tensor(const StoredTensor& weight, const Noise& noise, at::ArrayRef<StoredTensor> moments,
                   const Expression& G, const RuleStep& rule, bool exact, std::span<RoundingCount> rounding,
                   UpdatesTogether* together) {
  check(moments.size() == rule.rule().moments.size(), "update: ", rule.name(), " keeps ", rule.rule().moments.size(),
        " moments, got ", moments.size());
  if (!weight.values.is_non_overlapping_and_dense()) {
    StoredTensor whole = weight;
    whole.values = weight.values.detach().contiguous();
    update_tensor(whole, noise, moments, G, rule, exact, rounding);
    weight.values.detach().copy_(whole.values);
    return;
  }
  const Place place = {weight.values.device(), exact};
  Shape shape = matrix_shape(weight.values);
  std::array<Stored, kMaxMoments> S;
  for (std::size_t i = 0; i < moments.size(); ++i) {
    const Moment& moment = rule.rule().moments[i];
    S[i] = moments[i].view({moment.rows(shape.out), moment.cols(shape.in)});
  }
  Passes passes = {place, weight.view(shape, noise), {S.data(), moments.size()}, rounding, {}, {}};
  if (!together || !rounding.empty() || !together->take(place, passes.W, passes.S, G, rule)) {
    std::optional<Pass> pass = Pass{passes.first(rule, G, moments), {}};
    while (pass) pass = passes.run(*pass, passes.gradient(G));
  }
  bump(weight);
  for (const StoredTensor& moment : moments) bump(moment);
}

// What libraries below take for themselves: MKL's packed panels are 2 to 4 MiB a thread.
constexpr std::size_t kSlack = std::size_t{16} << 20;

void try_memory(const at::Tensor& weight, const RuleStep& rule) {
  bool has_gaps = !weight.is_non_overlapping_and_dense();
  if (!has_memory(weight) || (!has_gaps && !rule.rule().orthogonalized)) return;
  at::Tensor whole;
  const at::DataPtr slack = c10::GetDefaultCPUAllocator()->allocate(kSlack);  // which nobody counts
  if (has_gaps) whole = at::empty(weight.sizes(), weight.options());
  if (!rule.rule().orthogonalized) return;
  ScopedPurpose purpose(Purpose::direction);
  const auto [out, in] = matrix_shape(weight);
  auto fp32 = at::TensorOptions(at::kFloat).device(weight.device());
  const std::int64_t shorter = std::min(out, in);
  const std::array at_once = {at::empty({out, in}, fp32), at::empty({out, in}, fp32),
                              at::empty({shorter, shorter}, fp32), at::empty({shorter, shorter}, fp32)};
}

}  // namespace forge
