#include "forge/torch/matrix_view.h"

#include <c10/util/accumulate.h>

#include "forge/base/error.h"

namespace forge {

std::optional<DType> dtype_of(at::ScalarType type) {
  if (type == at::kFloat) return DType::f32;
  if (type == at::kBFloat16) return DType::bf16;
  return std::nullopt;
}

void check_operand(const char* who, const char* what, const at::Tensor& t) {
  check(t.defined(), who, ": ", what, " is undefined");
  check(t.device().is_cpu(), who, ": ", what, " is on ", t.device().str(), ", expected cpu");
  check(t.layout() == at::kStrided, who, ": ", what, " has layout ", t.layout(), ", expected a dense tensor");
  check(dtype_of(t.scalar_type()).has_value(), who, ": ", what, " is ", t.scalar_type(),
        ", expected Float or BFloat16");
}

Shape matrix_shape(at::IntArrayRef sizes) {
  if (sizes.size() == 2) return {sizes[0], sizes[1]};
  return {1, c10::multiply_integers(sizes)};
}

Matrix as_matrix(const at::Tensor& t, Shape shape) {
  return {t.data_ptr(), *dtype_of(t.scalar_type()), shape.out, shape.in, shape.in};
}

}  // namespace forge
