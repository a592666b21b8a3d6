#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <utility>

#include "forge/torch/record.h"

namespace forge {

// What a use of a weight leaves for its backward besides tensors: one entry of the node's saved data, since entries are
// looked up by name. The record is weak: an optimizer that has gone does not come back, and the weight does not go
// through save_for_backward, whose hooks may hand out another tensor.
template <class Use>
struct UseCapsule final : torch::CustomClassHolder {
  Use use;
  explicit UseCapsule(Use u) : use(std::move(u)) {}
};

template <class Use>
void keep_use(torch::autograd::AutogradContext* ctx, Use use) {
  ctx->saved_data["use"] = c10::IValue::make_capsule(c10::make_intrusive<UseCapsule<Use>>(std::move(use)));
}

// Lives as long as the node.
template <class Use>
const Use& kept_use(torch::autograd::AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<UseCapsule<Use>>(ctx->saved_data["use"].toCapsule())->use;
}

// To be called in backward. The products of a pass that is differentiated itself are ordinary ones.
template <class Use>
void expect_second_derivative(const Use& use) {
  if (!at::GradMode::is_enabled()) return;
  if (auto record = use.record.lock()) record->expect_ordinary("differentiated twice (create_graph=True)");
}

}  // namespace forge
