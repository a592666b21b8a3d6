#include "forge/torch/optimizer_impl.h"

namespace forge {
namespace {

// The buffer begins at the first update with momentum, which need not be the parameter's first.
RuleStep prepare(const SgdOptions& options, const ParameterState& state) {
  if (options.momentum == 0) return rules::Sgd::prepare(options);
  return rules::SgdMomentum::prepare(options, state.moments.empty() ? 1 : state.step + 1);
}

using SgdImpl = GroupedImpl<SgdOptions, prepare>;

}  // namespace

SGD::SGD(std::vector<at::Tensor> params, SgdOptions rule, OptimizerOptions options)
    : SGD({{.params = std::move(params), .options = rule}}, std::move(options)) {}
SGD::SGD(std::vector<ParamGroup<SgdOptions>> groups, OptimizerOptions options)
    : Optimizer(std::make_unique<SgdImpl>(std::move(groups), std::move(options))) {}
SGD::~SGD() = default;

std::vector<ParamGroup<SgdOptions>>& SGD::groups() { return static_cast<SgdImpl&>(*impl_).groups; }

}  // namespace forge
