#include "forge/torch/device_kernels.h"

#include <ATen/ops/scalar_tensor.h>
#include <c10/core/DeviceType.h>

#include <limits>
#include <map>
#include <memory>

#include "forge/base/error.h"
#include "forge/kernels/line_sums.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/norm.h"
#include "forge/kernels/update.h"
#include "forge/torch/executor.h"
#include "forge/torch/gpu_kernels.h"

namespace forge {
namespace {

class HostKernels final : public DeviceKernels {
 public:
  std::optional<Pass> update(const Place&, const Stored& W, std::span<const Stored> S, const Expression& G,
                             const Pass& pass, std::span<RoundingCount> rounding) const override {
    auto next = pass.rule.next(forge::update(W, S, G, pass.rule, torch_context(G), rounding));
    return next ? std::optional(Pass{*next, {}}) : std::nullopt;
  }
  void update_all(const Place&, std::span<const DenseUpdate> updates, const RuleStep& rule) const override {
    for (const DenseUpdate& one : updates) {
      Term term = one.D;
      Expression G = {one.W.values.rows, one.W.values.cols, std::span(&term, 1), one.scale};
      forge::update(one.W, one.S, G, rule, torch_context(G));
    }
  }
  void materialize(const Place&, const Matrix& D, const Expression& G) const override {
    forge::materialize(D, G, torch_context(G));
  }
  at::Tensor sum_squares(const Place&, const Expression& G, const std::optional<Known>& known) const override {
    if (known && known->holds.item<float>() != 0) return known->value;
    return at::scalar_tensor(forge::sum_squares(G, torch_context(G)), at::kDouble);
  }
  void sum_squares_of_lines(const Place&, const Expression& G, std::span<double> of_rows,
                            std::span<double> of_columns) const override {
    forge::sum_squares_of_lines(G, of_rows, of_columns, torch_context(G));
  }
  void check_rule(const char*, const RuleInfo&, bool) const override {}
  std::size_t most_terms() const override { return std::numeric_limits<std::size_t>::max(); }
};

using Table = std::map<at::DeviceType, std::unique_ptr<DeviceKernels>>;

Table& table() {
  static auto* all = [] {
    auto* t = new Table;  // never destroyed: tensors may outlive static variables
    t->emplace(at::kCPU, std::make_unique<HostKernels>());
    return t;
  }();
  return *all;
}

}  // namespace

const Dense* only_dense(const Expression& G) { return G.terms.size() == 1 ? std::get_if<Dense>(&G.terms[0]) : nullptr; }

bool has_kernels(at::DeviceType type) { return table().contains(type); }

const DeviceKernels& kernels_of(at::DeviceType type) {
  auto found = table().find(type);
  check(found != table().end(), "this library was built without kernels for ",
        c10::DeviceTypeName(type, /*lower_case=*/true));
  return *found->second;
}

bool add_gpu(at::DeviceType type, const cuda::Operations& operations) {
  return table().insert_or_assign(type, std::make_unique<GpuKernels>(operations)).second;
}

}  // namespace forge
