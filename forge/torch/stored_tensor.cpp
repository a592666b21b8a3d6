#include "forge/torch/stored_tensor.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <string>
#include <utility>

#include "forge/base/error.h"
#include "forge/base/integers.h"
#include "forge/kernels/recode.h"
#include "forge/torch/executor.h"

namespace forge {

at::ScalarType values_type(Format format, Sign sign) {
  const FormatInfo& info = info_of(format);
  return scalar_type_of(sign == Sign::any ? info.values : info.not_negative_values);
}

StoredTensor::StoredTensor(const at::Tensor& numbers)
    : format(numbers.scalar_type() == at::kBFloat16 ? Format::bf16 : Format::fp32), values(numbers) {}

StoredTensor::StoredTensor(Format f, at::Tensor v, at::Tensor r)
    : format(f), values(std::move(v)), rest(std::move(r)) {}

std::int64_t StoredTensor::bytes() const {
  return static_cast<std::int64_t>(values.nbytes() + (rest.defined() ? rest.nbytes() : 0));
}

Stored StoredTensor::view(Shape shape, const Noise& noise) const {
  const FormatInfo& info = info_of(format);
  Shape of_rest = {shape.out, ceil_div(shape.in, info.columns_of_rest)};
  return {format, as_matrix(values, shape), info.has_rest ? as_matrix(rest, of_rest) : Matrix{}, noise};
}

std::vector<std::int64_t> sizes_of_rest(const at::Tensor& parameter, Format format) {
  std::int64_t columns = info_of(format).columns_of_rest;
  if (columns == 1) return parameter.sizes().vec();
  Shape shape = matrix_shape(parameter);
  return {shape.out, ceil_div(shape.in, columns)};
}

at::Tensor zeros_of_rest(const at::Tensor& parameter, Format format) {
  const FormatInfo& info = info_of(format);
  if (!info.has_rest) return {};
  at::ScalarType type = scalar_type_of(info.rest);
  if (info.columns_of_rest == 1) return at::zeros_like(parameter, type).requires_grad_(false);
  return at::zeros(sizes_of_rest(parameter, format), parameter.options().dtype(type)).requires_grad_(false);
}

StoredTensor zeros_in_format(const at::Tensor& parameter, Format format, Sign sign) {
  at::Tensor values = at::zeros_like(parameter, values_type(format, sign)).requires_grad_(false);
  return {format, std::move(values), zeros_of_rest(parameter, format)};
}

std::vector<std::int64_t> sizes_of_moment(const at::Tensor& parameter, const Moment& moment) {
  if (moment.extent == Extent::element) return parameter.sizes().vec();
  Shape shape = matrix_shape(parameter);
  return {moment.rows(shape.out), moment.cols(shape.in)};
}

StoredTensor zeros_of_moment(const at::Tensor& parameter, const Moment& moment, Format format) {
  if (moment.extent == Extent::element) return zeros_in_format(parameter, format, moment.sign);
  return at::zeros(sizes_of_moment(parameter, moment), parameter.options().dtype(at::kFloat)).requires_grad_(false);
}

namespace {

StoredTensor moved(const StoredTensor& t, at::Device device) {
  return {t.format, t.values.to(device), t.rest.defined() ? t.rest.to(device) : at::Tensor()};
}

}  // namespace

// Where state is loaded, so that it does not matter how long the way through the host takes.
StoredTensor in_format(const StoredTensor& from, Format format, Sign sign) {
  if (from.format == format) return from;
  if (!from.values.is_cpu()) return moved(in_format(moved(from, at::kCPU), format, sign), from.values.device());
  StoredTensor to = zeros_in_format(from.values, format, sign);
  Shape shape = matrix_shape(from.values);
  Expression nothing = {.out = shape.out, .in = shape.in, .terms = {}, .scale = 1};
  recode(to.view(shape), from.view(shape), sign, torch_context(nothing));
  return to;
}

Format format_of(const std::string& name) {
  std::string all;
  for (int i = 0; i < kFormatCount; ++i) {
    if (name == kFormats[i].name) return Format(i);
    all += (i > 0 ? ", " : "") + std::string(kFormats[i].name);
  }
  fail("there is no format \"", name, "\"; the formats are ", all);
}

}  // namespace forge
