#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "forge/torch/gradient.h"

namespace forge {

// How a Gradient stands in a parameter's .grad where users look for it there: as a tensor of a class that another
// language defines. From C++ there is none, and gradients are looked up by parameter. Called without that language's
// locks, from any thread.
class GradientHandles {
 public:
  virtual ~GradientHandles() = default;
  // A tensor of the parameter's shape, dtype and device that refers to G and keeps it alive.
  virtual at::Tensor make(const std::shared_ptr<Gradient>& G, const at::Tensor& parameter) = 0;
  // What the handle refers to; null where the tensor is no handle.
  virtual std::shared_ptr<Gradient> find(const at::Tensor& tensor) = 0;
  // True where that language's users have hooks on the parameter's gradient. Its list of hooks may be there and empty.
  virtual bool has_hooks(const at::Tensor& parameter) = 0;
};

// One for the process, installed before the first optimizer that wants handles. Never destroyed.
void install(GradientHandles* handles);
GradientHandles* gradient_handles();

// What .grad refers to, where it is a handle.
std::shared_ptr<Gradient> gradient_behind(const at::Tensor& grad);

}  // namespace forge
