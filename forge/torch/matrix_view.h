#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "forge/base/matrix.h"

namespace forge {

// The element type of kernels for torch's, where there is one, and back.
std::optional<DType> dtype_of(at::ScalarType type);
at::ScalarType scalar_type_of(DType dtype);

// Operands may be of this type: numbers that kernels read.
bool is_operand(at::ScalarType type);
// Parameters, plain moments and materialized gradients may be of this type: numbers that are stored as they are.
bool is_stored(at::ScalarType type);

// Throws Error unless t is a dense tensor on a device that has kernels: an operand, which the gradient is made of, in
// any type that kernels read; or what is stored, in one that they write. `who` opens the sentence, `what` names the
// tensor.
void check_operand(const char* who, const char* what, const at::Tensor& t);
void check_stored(const char* who, const char* what, const at::Tensor& t);
// Only that its type is one that is stored.
void check_stored_type(const char* who, const char* what, const at::Tensor& t);

// False for tensors that have a shape and no numbers: on the device meta, or made under FakeTensorMode.
bool has_memory(const at::Tensor& t);

// Another name for t's memory as it is now, with t's version counter: who gives t other memory (.data) leaves it alone.
// Past the dispatcher, and past modes, which would see a detach().
at::Tensor another_name(const at::Tensor& t);

// A parameter's shape as kernels see it: what is not a matrix is one row.
struct Shape {
  std::int64_t out, in;
};
Shape matrix_shape(at::IntArrayRef sizes);
// The same of a tensor; one in another than row-major order (channels last) is one row in the order of its memory, and
// one with gaps in memory is taken as its contiguous copy.
Shape matrix_shape(const at::Tensor& t);

// The same elements in the memory order of `like` (row-major where that has gaps): t itself where it has that order.
at::Tensor in_layout_of(const at::Tensor& like, const at::Tensor& t);

// A tensor without gaps as a matrix of this shape.
Matrix as_matrix(const at::Tensor& t, Shape shape);

}  // namespace forge
