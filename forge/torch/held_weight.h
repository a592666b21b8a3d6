#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "forge/torch/record.h"

namespace forge {

// A dense tensor of numbers that kernels read, without another meaning that a dispatcher would give it.
bool is_plain(const at::Tensor& t);

// What a forward pass multiplies by, where a parameter that an optimizer holds is behind it.
struct HeldWeight {
  std::shared_ptr<Record> record;  // null: nothing is to be recorded
  at::Tensor leaf;                 // the parameter
  at::Tensor used;                 // what was given: the leaf, its transpose, a cast of either
  bool transposed = false;         // `used` against the leaf
};

// Looks through casts and transposes for the parameter. `weight` is a matrix; its .grad_fn tells what was done to it.
HeldWeight find_held(const at::Tensor& weight);

}  // namespace forge
