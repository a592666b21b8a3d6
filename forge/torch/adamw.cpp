#include "forge/torch/optimizer_impl.h"

namespace forge {
namespace {

RuleStep prepare(const AdamWOptions& options, const ParameterState& state) {
  return rules::AdamW::prepare(options, state.step + 1);
}

using AdamWImpl = GroupedImpl<AdamWOptions, prepare>;

}  // namespace

AdamW::AdamW(std::vector<at::Tensor> params, AdamWOptions rule, OptimizerOptions options)
    : AdamW({{.params = std::move(params), .options = rule}}, std::move(options)) {}
AdamW::AdamW(std::vector<ParamGroup<AdamWOptions>> groups, OptimizerOptions options)
    : Optimizer(std::make_unique<AdamWImpl>(std::move(groups), std::move(options))) {}
AdamW::~AdamW() = default;

std::vector<ParamGroup<AdamWOptions>>& AdamW::groups() { return static_cast<AdamWImpl&>(*impl_).groups; }

}  // namespace forge
