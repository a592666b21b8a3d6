#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "forge/base/error.h"
#include "forge/torch/capsule.h"
#include "forge/torch/functional.h"
#include "forge/torch/record.h"

namespace forge {
namespace {

using torch::autograd::AutogradContext;
using OptionalTensor = std::optional<at::Tensor>;

at::Tensor as_tokens(const at::Tensor& t) {
  std::int64_t tokens = 1;
  for (std::int64_t d = 0; d < t.dim() - 1; ++d) tokens *= t.size(d);
  return t.reshape({tokens, t.size(-1)}).contiguous();
}

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const std::shared_ptr<Record>& record) {
    // The weight is for dX only: where that is not wanted, it may change before backward.
    ctx->save_for_backward({x, x.requires_grad() ? weight : at::Tensor()});
    ctx->saved_data["record"] = to_capsule(record);
    ctx->saved_data["users_own_x"] = x.is_leaf();
    ctx->saved_data["has_bias"] = bias.has_value();
    // Autocast has its say in linear() below; its cache must not see a cast made without grad mode.
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    at::AutoDispatchBelowADInplaceOrView guard;
    auto cast = [&](const at::Tensor& t) { return t.to(x.scalar_type()); };
    return at::linear(x, cast(weight), bias ? OptionalTensor(cast(*bias)) : OptionalTensor());
  }

  static std::vector<at::Tensor> backward(AutogradContext* ctx, const std::vector<at::Tensor>& grads) {
    auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    at::Tensor dY = as_tokens(grads[0]), dX, dW, db;
    if (ctx->needs_input_grad(0)) dX = dY.mm(weight.to(dY.scalar_type())).view(x.sizes());
    if (ctx->needs_input_grad(1)) dW = weight_gradient(ctx, dY, as_tokens(x));
    // The edges are those of tensor inputs: a bias that is there is the third.
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) db = dY.sum(0);
    return {dX, dW, db, at::Tensor()};
  }

  // Recorded, and then undefined; a tensor where somebody asks for one.
  static at::Tensor weight_gradient(AutogradContext* ctx, const at::Tensor& dY, const at::Tensor& X) {
    check(!at::GradMode::is_enabled(),
          "linear.backward: create_graph through a weight that an optimizer holds is not "
          "supported; use at::linear for what is differentiated twice");
    auto record = from_capsule(ctx->saved_data["record"]);
    if (!record || record->is_captured()) return dY.t().mm(X);
    record->record_outer(dY.detach(), X.detach(), ctx->saved_data["users_own_x"].toBool());
    return {};
  }
};

void check_shapes(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  check(x.defined() && weight.defined(), "linear: x or the weight is undefined");
  check(weight.dim() == 2, "linear: the weight is ", weight.sizes(), ", expected (out, in)");
  check(x.dim() >= 1 && x.size(-1) == weight.size(1), "linear: x is ", x.sizes(), ", expected (…, ", weight.size(1),
        ") for a weight of ", weight.sizes());
  check(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)), "linear: the bias is ",
        bias ? bias->sizes() : at::IntArrayRef(), ", expected (", weight.size(0), ") for a weight of ", weight.sizes());
}

bool is_autocast(const at::Tensor& t) {
  return (t.is_cpu() || t.is_cuda()) && at::autocast::is_autocast_enabled(t.device().type());
}

void check_types(const at::Tensor& t, const char* what, const at::Tensor& weight) {
  check(t.device() == weight.device(), "linear: ", what, " is on ", t.device().str(), " and the weight on ",
        weight.device().str());
  check(is_autocast(t) || t.scalar_type() == weight.scalar_type(), "linear: ", what, " is ", t.scalar_type(),
        " and the weight ", weight.scalar_type());
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  OptionalTensor b = bias && bias->defined() ? bias : OptionalTensor();
  check_shapes(x, weight, b);
  check_types(x, "x", weight);
  if (b) check_types(*b, "the bias", weight);
  auto record = record_for_use(weight);
  if (!record || x._fw_grad(0).defined()) return at::linear(x, weight, b);
  return Linear::apply(is_autocast(x) ? x.to(at::autocast::get_autocast_dtype(x.device().type())) : x, weight, b,
                       record);
}

}  // namespace forge
