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

struct LinearUse {
  std::weak_ptr<Record> record;
  bool users_own_x, has_bias, transposed;
};

at::Tensor as_tokens(const at::Tensor& t) {
  if (t.dim() == 2 && t.is_contiguous()) return t;
  std::int64_t tokens = 1;
  for (std::int64_t d = 0; d < t.dim() - 1; ++d) tokens *= t.size(d);
  return t.reshape({tokens, t.size(-1)}).contiguous();
}

// t.detach(), which shares the version counter too, past the dispatcher.
at::Tensor without_history(const at::Tensor& t) { return at::Tensor(t.tensor_data()); }

// y = x Wᵀ + b, or with `transposed` y = x W + b for a weight of (in, out).
struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias, const std::shared_ptr<Record>& record, bool transposed) {
    // The weight is for dX only: where that is not wanted, it may change before backward.
    ctx->save_for_backward({x, x.requires_grad() ? weight : at::Tensor()});
    keep_use<LinearUse>(ctx, {record, x.is_leaf(), bias.has_value(), transposed});
    // Autocast has its say in apply() below; its cache must not see a cast made without grad mode.
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    at::AutoDispatchBelowADInplaceOrView guard;
    auto cast = [&](const at::Tensor& t) { return t.to(x.scalar_type()); };
    at::Tensor W = cast(weight);
    return at::linear(x, transposed ? W.t() : W, bias ? OptionalTensor(cast(*bias)) : OptionalTensor());
  }

  static std::vector<at::Tensor> backward(AutogradContext* ctx, const std::vector<at::Tensor>& grads) {
    auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    auto use = kept_use<LinearUse>(ctx);
    at::Tensor dY = as_tokens(grads[0]), dX, dW, db;
    if (ctx->needs_input_grad(0)) dX = input_gradient(use, dY, weight, x.sizes());
    if (ctx->needs_input_grad(1)) dW = weight_gradient(use, dY, x);
    // The edges are those of tensor inputs: a bias that is there is the third.
    if (use.has_bias && ctx->needs_input_grad(2)) db = dY.sum(0);
    return {dX, dW, db, at::Tensor(), at::Tensor()};
  }

  static at::Tensor input_gradient(const LinearUse& use, const at::Tensor& dY, const at::Tensor& weight,
                                   at::IntArrayRef sizes) {
    at::Tensor W = weight.to(dY.scalar_type());
    at::Tensor dX = dY.mm(use.transposed ? W.t() : W);
    return sizes.size() == 2 ? dX : dX.view(sizes);
  }

  // Recorded, and then undefined; a tensor where somebody asks for one.
  static at::Tensor weight_gradient(const LinearUse& use, const at::Tensor& dY, const at::Tensor& x) {
    check(!at::GradMode::is_enabled(),
          "linear.backward: create_graph through a weight that an optimizer holds is not "
          "supported; use torch's own linear for what is differentiated twice");
    at::Tensor X = as_tokens(x);
    auto record = use.record.lock();
    if (!record || record->wants_tensor()) return use.transposed ? X.t().mm(dY) : dY.t().mm(X);
    Record::Factor left{without_history(dY)}, right{without_history(X), use.users_own_x};
    if (use.transposed) std::swap(left, right);  // (dYᵀX)ᵀ = XᵀdY
    record->record_outer(left, right);
    return {};
  }
};

void check_shapes(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, bool transposed) {
  check(x.defined() && weight.defined(), "linear: x or the weight is undefined");
  check(weight.dim() == 2, "linear: the weight is ", weight.sizes(), ", expected ",
        transposed ? "(in, out)" : "(out, in)");
  std::int64_t in = weight.size(transposed ? 0 : 1), out = weight.size(transposed ? 1 : 0);
  check(x.dim() >= 1 && x.size(-1) == in, "linear: x is ", x.sizes(), ", expected (…, ", in, ") for a weight of ",
        weight.sizes());
  check(!bias || (bias->dim() == 1 && bias->size(0) == out), "linear: the bias is ",
        bias ? bias->sizes() : at::IntArrayRef(), ", expected (", out, ") for a weight of ", weight.sizes());
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

at::Tensor apply(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, bool transposed) {
  OptionalTensor b = bias && bias->defined() ? bias : OptionalTensor();
  check_shapes(x, weight, b, transposed);
  check_types(x, "x", weight);
  if (b) check_types(*b, "the bias", weight);
  auto record = record_for_use(weight);
  // A tensor of another kind (a subclass, a fake one) is for the dispatcher.
  bool ordinary = record && !x.key_set().has(c10::DispatchKey::Python) && !x._fw_grad(0).defined();
  if (!ordinary) return at::linear(x, transposed ? weight.t() : weight, b);
  return Linear::apply(is_autocast(x) ? x.to(at::autocast::get_autocast_dtype(x.device().type())) : x, weight, b,
                       record, transposed);
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return apply(x, weight, bias, /*transposed=*/false);
}

at::Tensor linear_transposed(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  return apply(x, weight, bias, /*transposed=*/true);
}

}  // namespace forge
