#include "forge/torch/matrix_view.h"

#include <ATen/ops/empty_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <iterator>

#include "forge/base/error.h"
#include "forge/torch/device_kernels.h"

namespace forge {
namespace {

// In the order of DType.
constexpr at::ScalarType kScalarTypes[] = {at::kFloat, at::kBFloat16, at::kHalf,         at::kShort,
                                           at::kChar,  at::kByte,     at::kFloat8_e4m3fn};

void check_dense(const char* who, const char* what, const at::Tensor& t) {
  check(t.defined(), who, ": ", what, " is undefined");
  check(
      has_kernels(t.device().type()), who, ": ", what, " is on ", t.device().str(),
      ", for which this library was built without kernels; move it to the CPU, or build where nvcc and a CUDA build of "
      "torch are");
  check(t.layout() == at::kStrided, who, ": ", what, " has layout ", t.layout(), ", expected a dense tensor");
}

}  // namespace

std::optional<DType> dtype_of(at::ScalarType type) {
  const auto* found = std::ranges::find(kScalarTypes, type);
  if (found == std::end(kScalarTypes)) return std::nullopt;
  return static_cast<DType>(found - kScalarTypes);
}

at::ScalarType scalar_type_of(DType dtype) { return kScalarTypes[static_cast<std::size_t>(dtype)]; }

bool is_operand(at::ScalarType type) {
  auto dtype = dtype_of(type);
  return dtype && is_number(*dtype);
}

bool is_stored(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16; }

void check_operand(const char* who, const char* what, const at::Tensor& t) {
  check_dense(who, what, t);
  check(is_operand(t.scalar_type()), who, ": ", what, " is ", t.scalar_type(), ", expected Float, BFloat16 or Half");
}

void check_stored(const char* who, const char* what, const at::Tensor& t) {
  check_dense(who, what, t);
  check_stored_type(who, what, t);
}

void check_stored_type(const char* who, const char* what, const at::Tensor& t) {
  check(is_stored(t.scalar_type()), who, ": ", what, " is ", t.scalar_type(),
        ", expected Float or BFloat16; Half is for activations and their gradients, as autocast makes them");
}

Shape matrix_shape(at::IntArrayRef sizes) {
  if (sizes.size() == 2) return {sizes[0], sizes[1]};
  return {1, c10::multiply_integers(sizes)};
}

bool has_memory(const at::Tensor& t) { return !t.is_meta() && !t.key_set().has(c10::DispatchKey::Python); }

at::Tensor another_name(const at::Tensor& t) {
  c10::impl::ExcludeDispatchKeyGuard no_modes(c10::python_ks);
  c10::TensorImpl* impl = t.unsafeGetTensorImpl();
  return at::Tensor(impl->shallow_copy_and_detach(impl->version_counter(), /*allow_tensor_metadata_change=*/false));
}

Shape matrix_shape(const at::Tensor& t) {
  bool in_rows = t.is_contiguous() || !t.is_non_overlapping_and_dense();
  return in_rows ? matrix_shape(t.sizes()) : Shape{1, t.numel()};
}

at::Tensor in_layout_of(const at::Tensor& like, const at::Tensor& t) {
  if (!like.is_non_overlapping_and_dense()) return t.contiguous();
  bool same = t.is_contiguous() ? like.is_contiguous() : t.strides() == like.strides();
  return same ? t : at::empty_like(like, t.options()).copy_(t);
}

Matrix as_matrix(const at::Tensor& t, Shape shape) {
  return {has_memory(t) ? t.data_ptr() : nullptr, *dtype_of(t.scalar_type()), shape.out, shape.in, shape.in};
}

}  // namespace forge
