#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "forge/torch/record.h"

namespace forge {

// A dense tensor of numbers that kernels read, without another meaning that a dispatcher would give it.
bool is_plain(const at::Tensor& t);

// What a forward pass multiplies by, where a parameter that an optimizer holds is behind it.
struct HeldWeight {
  std::shared_ptr<Record> record;  // null: nothing is to be recorded
  at::Tensor given;                // the leaf, its transpose, a cast of either: autograd's edge leads there
  at::Tensor used;                 // what is multiplied by: `given` or its transpose
  bool transposed = false;         // `used` against the leaf
};

// The node that made a tensor; torch's versions point to it differently.
using NodePointer = std::decay_t<decltype(std::declval<const at::Tensor&>().grad_fn())>;

// In backward: whether somebody waits for the gradient of a cast or transpose between a use and its parameter, with a
// hook or by torch.autograd.grad. `made_by` made what was given; null for the parameter itself.
bool is_watched_on_its_way(const NodePointer& made_by);

// Looks through casts and transposes for the parameter. `weight` is a matrix; its .grad_fn tells what was done to it.
HeldWeight find_held(const at::Tensor& weight);

}  // namespace forge
