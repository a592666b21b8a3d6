#include "forge/torch/whole_gradient.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <utility>

#include "forge/base/error.h"
#include "forge/torch/device_kernels.h"
#include "forge/torch/handle.h"

namespace forge {

WholeGradient::WholeGradient(const at::Tensor& parameter, Record* record) : shape_(matrix_shape(parameter)) {
  if (record) record->absorb_grad();
  if (record) recorded_ = record->current();
  if (!recorded_ || recorded_->empty()) recorded_ = gradient_behind(parameter.grad());
  if (!recorded_) {
    grad_ = parameter.grad();
    take(parameter);
    return;
  }
  lock_ = recorded_->lock();
  Expression G = recorded_->expression();  // a spent one says so
  if (G.terms.empty()) {
    lock_.unlock();
    recorded_ = nullptr;
    return;
  }
  check(recorded_->is_of(parameter) && G.out == shape_.out && G.in == shape_.in,
        "Gradient: a gradient was recorded for a parameter that has another shape, order in memory or device now, ",
        parameter.sizes(), " with strides ", parameter.strides(), " on ", parameter.device().str(),
        "; call zero_grad() where you give a parameter other memory");
}

WholeGradient::WholeGradient(const at::Tensor& parameter, at::Tensor grad)
    : grad_(std::move(grad)), shape_(matrix_shape(parameter)) {
  take(parameter);
}

void WholeGradient::take(const at::Tensor& parameter) {
  if (!grad_.defined()) return;
  at::Tensor strided = grad_.is_sparse() ? grad_.detach().to_dense() : grad_.detach();
  if (has_memory(parameter)) check_operand("Gradient", "a parameter's .grad", strided);
  check(strided.sizes() == parameter.sizes(), "Gradient: a parameter's .grad is ", strided.sizes(), ", expected ",
        parameter.sizes());
  check(strided.device() == parameter.device(), "Gradient: a parameter's .grad is on ", strided.device().str(),
        " and the parameter on ", parameter.device().str(), "; call zero_grad() where you move a parameter");
  dense_ = in_layout_of(parameter, strided);
  term_ = Dense{as_matrix(dense_, shape_)};
}

Expression WholeGradient::expression() const {
  return recorded_ ? recorded_->expression() : Expression{shape_.out, shape_.in, {&term_, dense_.defined() ? 1u : 0u}};
}

at::Tensor WholeGradient::sum_squares(bool exact) const {
  if (recorded_) return recorded_->sum_squares(exact);
  return kernels_of(dense_.device().type()).sum_squares({dense_.device(), exact}, expression(), {});
}

void WholeGradient::mul_(const at::Tensor& factor) {
  if (recorded_) return recorded_->mul_(factor);
  c10::impl::ExcludeDispatchKeyGuard no_autograd(c10::autograd_dispatch_keyset);
  scale_in_place(grad_, factor);
}

}  // namespace forge
