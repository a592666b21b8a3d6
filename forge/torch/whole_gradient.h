#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "forge/torch/record.h"

namespace forge {

// The gradient of a parameter as a whole: recorded terms first, then what autograd put into .grad. Where there are
// both, .grad has become a term. Nobody else changes it while this lives. Valid until this changes it.
class WholeGradient {
 public:
  // The record may be null: then .grad is all. Throws Error where the gradient is of another shape or device than the
  // parameter is now.
  WholeGradient(const at::Tensor& parameter, Record* record);
  // An ordinary gradient of a parameter of this shape, or an undefined tensor.
  WholeGradient(const at::Tensor& parameter, at::Tensor grad);

  bool is_ordinary() const { return recorded_ == nullptr; }
  bool empty() const { return recorded_ == nullptr && !dense_.defined(); }
  Expression expression() const;
  Scale scale() const { return recorded_ ? recorded_->scale() : Scale(); }
  // As of a Gradient. There is one.
  at::Tensor sum_squares(bool exact) const;
  void mul_(const at::Tensor& factor);

 private:
  void take(const at::Tensor& parameter);

  at::Tensor grad_;  // .grad itself
  std::shared_ptr<Gradient> recorded_;
  Gradient::Lock lock_;  // of recorded_
  at::Tensor dense_;     // .grad, in the parameter's layout
  Shape shape_;
  Term term_;
};

}  // namespace forge
