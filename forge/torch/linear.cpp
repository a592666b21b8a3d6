#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear_native.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/matmul_native.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "forge/torch/capsule.h"
#include "forge/torch/dispatch.h"
#include "forge/torch/held_weight.h"
#include "forge/torch/record.h"
#include "forge/torch/saved_input.h"

namespace forge {
namespace {

using torch::autograd::AutogradContext;
using OptionalTensor = std::optional<at::Tensor>;

// The memory that W had in forward, where it is the parameter itself: a user may give that other memory before
// backward, and saved tensors keep the tensor.
class MemoryThen {
 public:
  explicit MemoryThen(const at::Tensor& W) {
    if (!W.is_leaf()) return;
    parameter_ = W.unsafeGetTensorImpl();
    memory_ = another_name(W);
  }
  const at::Tensor& of(const at::Tensor& unpacked) const {
    bool same = unpacked.defined() && unpacked.unsafeGetTensorImpl() == parameter_;
    return same && !at::GradMode::is_enabled() ? memory_ : unpacked;
  }

 private:
  const c10::TensorImpl* parameter_ = nullptr;  // to compare
  at::Tensor memory_;
};

struct LinearUse {
  std::weak_ptr<Record> record;
  NodePointer weight_made_by;
  SavedInput x;
  MemoryThen W;
  bool has_bias, transposed;  // as of HeldWeight
  bool flipped;               // what was given against what is multiplied by

  LinearUse(const HeldWeight& held, const at::Tensor& x, bool has_bias)
      : record(held.record),
        weight_made_by(held.given.grad_fn()),
        x(x),
        W(held.used),
        has_bias(has_bias),
        transposed(held.transposed),
        flipped(!held.given.is_same(held.used)) {}
};

at::Tensor in_rows(const at::Tensor& t) {
  std::int64_t tokens = 1;
  for (std::int64_t d = 0; d < t.dim() - 1; ++d) tokens *= t.size(d);
  return t.reshape({tokens, t.size(-1)});
}

at::Tensor as_tokens(const at::Tensor& t) { return t.dim() == 2 && t.is_contiguous() ? t : in_rows(t).contiguous(); }

// A mode that looks at operations (FlopCounterMode) is shown the product that an update will compute.
void show_product(const at::Tensor& dY, const at::Tensor& X) {
  if (!c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Python)) return;
  auto shape_of = [](const at::Tensor& t) { return at::empty(t.sizes(), t.options().device(at::kMeta)); };
  at::mm(shape_of(dY).t(), shape_of(X));
}

// The record to write to; null where the weight's gradient is to be a tensor.
std::shared_ptr<Record> record_to_write(const LinearUse& use) {
  auto record = use.record.lock();
  if (!record || at::GradMode::is_enabled()) return nullptr;
  if (!is_watched_on_its_way(use.weight_made_by)) return record;
  record->expect_ordinary("a cast or transpose of the weight has gradient hooks, or its gradient was asked for");
  return nullptr;
}

// What arrived from autograd as `grad`, in rows.
Record::Factor arrived(const at::Tensor& dY, const at::Tensor& grad) {
  return {dY, dY.is_alias_of(grad) && is_known_elsewhere(grad)};
}

// dYᵀX, both (T, …): recorded, and then undefined; a tensor of the shape of what was given where somebody asks for one.
at::Tensor weight_gradient(const LinearUse& use, const Record::Factor& of_output, const Record::Factor& of_input) {
  const at::Tensor &dY = of_output.tensor, &X = of_input.tensor;
  auto record = record_to_write(use);
  Record::Factor left = of_output, right = of_input;
  if (use.transposed) std::swap(left, right);  // (dYᵀX)ᵀ = XᵀdY
  if (record && record->record_outer(left, right)) return show_product(dY, X), at::Tensor();
  return use.flipped ? X.t().mm(dY) : dY.t().mm(X);
}

// The products of torch's linear, each as modes see it without us (selective checkpointing looks for mm and addmm):
// below autograd a composite inside of a composite would reach them whole, and matmul would not fold x into rows, as it
// does where its other factor requires a gradient.
at::Tensor product(const at::Tensor& x, const at::Tensor& W, const OptionalTensor& bias) {
  if (bias && (x.dim() == 2 || x.is_contiguous())) return at::native::linear(x, W, bias);
  if (x.dim() < 3) return at::native::matmul(x, W.t());
  auto sizes = x.sizes().vec();
  sizes.back() = W.size(0);
  at::Tensor y = at::mm(in_rows(x), W.t()).view(sizes);
  return bias ? y.add_(*bias) : y;
}

// y = x Wᵀ + b. The second input is what was given for the weight: autograd's edge leads there, so that hooks on a cast
// are called.
struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor&, const OptionalTensor& bias,
                            const HeldWeight& held) {
    // W is for dX only: where that is not wanted, it may change before backward.
    ctx->save_for_backward({x, x.requires_grad() ? held.used : at::Tensor()});
    keep_use<LinearUse>(ctx, LinearUse(held, x, bias.has_value()));
    at::AutoDispatchBelowADInplaceOrView guard;
    return product(x, held.used, bias);
  }

  static std::vector<at::Tensor> backward(AutogradContext* ctx, const std::vector<at::Tensor>& grads) {
    auto saved = ctx->get_saved_variables();
    const auto& use = kept_use<LinearUse>(ctx);
    const at::Tensor &x = saved[0], &W = use.W.of(saved[1]);
    expect_second_derivative(use);  // also where only dX is wanted, which is a product with the weight
    at::Tensor dY = as_tokens(grads[0]), dX, dW, db;
    if (ctx->needs_input_grad(0)) dX = input_gradient(dY, W, x.sizes());
    if (ctx->needs_input_grad(1)) dW = weight_gradient(use, arrived(dY, grads[0]), {as_tokens(x), use.x.may_change(x)});
    // The edges are those of tensor inputs: a bias that is there is the third.
    if (use.has_bias && ctx->needs_input_grad(2)) db = dY.sum(0);
    return {dX, dW, db, at::Tensor()};
  }

  static at::Tensor input_gradient(const at::Tensor& dY, const at::Tensor& W, at::IntArrayRef sizes) {
    at::Tensor dX = dY.mm(W);
    return sizes.size() == 2 ? dX : dX.view(sizes);
  }
};

// Y = W X for columns of tokens: X (…, in, T), Y (…, out, T). The second input as in Linear.
struct LinearOfColumns : torch::autograd::Function<LinearOfColumns> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& X, const at::Tensor&, const HeldWeight& held) {
    ctx->save_for_backward({X, X.requires_grad() ? held.used : at::Tensor()});
    keep_use<LinearUse>(ctx, LinearUse(held, X, false));
    at::AutoDispatchBelowADInplaceOrView guard;
    return at::native::matmul(held.used, X);
  }

  static std::vector<at::Tensor> backward(AutogradContext* ctx, const std::vector<at::Tensor>& grads) {
    auto saved = ctx->get_saved_variables();
    const auto& use = kept_use<LinearUse>(ctx);
    const at::Tensor &X = saved[0], &W = use.W.of(saved[1]), &dY = grads[0];
    expect_second_derivative(use);
    auto tokens = [](const at::Tensor& columns) { return as_tokens(columns.transpose(-1, -2)); };
    at::Tensor dX, dW;
    if (ctx->needs_input_grad(0)) dX = at::matmul(W.t(), dY);
    if (ctx->needs_input_grad(1)) dW = weight_gradient(use, arrived(tokens(dY), dY), {tokens(X), use.x.may_change(X)});
    return {dX, dW, at::Tensor()};
  }
};

bool fits_type(const at::Tensor& t, const HeldWeight& held) {
  return is_plain(t) && t.scalar_type() == held.used.scalar_type() && t.device() == held.used.device();
}

// What does not fit is for torch to do, or to refuse in its words.
bool fits(const at::Tensor& x, const OptionalTensor& bias, const HeldWeight& held) {
  bool x_fits = fits_type(x, held) && x.dim() >= 1 && x.size(-1) == held.used.size(1);
  return x_fits && (!bias || (fits_type(*bias, held) && bias->dim() == 1 && bias->size(0) == held.used.size(0)));
}

// Set while torch's linear calls matmul with a weight that has been looked at: where nobody holds it, looking again is
// most of what this costs.
thread_local bool looked = false;

at::Tensor linear_of_torch(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  struct Looked {
    Looked() { looked = true; }
    ~Looked() { looked = false; }
  } until_the_end;
  return at::native::linear(x, weight, bias);
}

at::Tensor linear_of_held(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& given) {
  HeldWeight held = find_held(weight);
  OptionalTensor bias = given && given->defined() ? given : OptionalTensor();
  if (!held.record) return linear_of_torch(x, weight, given);
  if (!fits(x, bias, held)) return at::native::linear(x, weight, given);  // its matmul may fit
  return Linear::apply(x, held.given, bias, held);
}

// x W is linear with Wᵀ for its weight; W X is the same for columns.
at::Tensor matmul_of_held(const at::Tensor& left, const at::Tensor& right) {
  if (std::exchange(looked, false)) return at::native::matmul(left, right);
  if (HeldWeight held = find_held(right); held.record) {
    held.used = right.t();  // a view, whose history is the leaf's
    held.transposed = !held.transposed;
    if (fits(left, {}, held)) return Linear::apply(left, held.given, OptionalTensor(), held);
  } else if (held = find_held(left); held.record) {
    bool columns = fits_type(right, held) && right.dim() >= 2 && right.size(-2) == left.size(1);
    if (columns) return LinearOfColumns::apply(right, held.given, held);
  }
  return at::native::matmul(left, right);
}

}  // namespace

void put_before_linear(torch::Library& m) {
  m.impl("linear", &linear_of_held);
  m.impl("matmul", &matmul_of_held);
}

}  // namespace forge
