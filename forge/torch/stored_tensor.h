#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "forge/formats/format.h"
#include "forge/rules/rule.h"
#include "forge/torch/matrix_view.h"

namespace forge {

// A weight or a moment as its format keeps it (formats/format.h).
struct StoredTensor {
  Format format = Format::fp32;
  at::Tensor values;  // of the parameter's shape
  at::Tensor rest;    // lower halves, of the same shape; or scales, (rows, ⌈cols / 32⌉); or undefined

  StoredTensor() = default;
  // Numbers that are stored as they are: Float or BFloat16.
  StoredTensor(const at::Tensor& numbers);  // NOLINT: a tensor of numbers is stored numbers
  StoredTensor(Format f, at::Tensor v, at::Tensor r = {});

  std::int64_t bytes() const;
  // What kernels see. The weight's shape as matrix_shape has it.
  Stored view(Shape shape, const Noise& noise = {}) const;
};

// Zeros in a format, of the parameter's shape and memory order.
StoredTensor zeros_in_format(const at::Tensor& parameter, Format format, Sign sign);

// What a rule keeps for a parameter before its first update; in `format`, or in fp32 where it has one number for a row
// or a column. And its shape.
StoredTensor zeros_of_moment(const at::Tensor& parameter, const Moment& moment, Format format);
std::vector<std::int64_t> sizes_of_moment(const at::Tensor& parameter, const Moment& moment);

// The type of a format's values, and the shape of its scales for a tensor of that shape.
at::ScalarType values_type(Format format, Sign sign);
std::vector<std::int64_t> sizes_of_rest(const at::Tensor& parameter, Format format);

// The second part of what a format keeps for a parameter, zeros; undefined where it has none.
at::Tensor zeros_of_rest(const at::Tensor& parameter, Format format);

// The same numbers in another format, rounded as it rounds. `from` itself where it is in that format.
StoredTensor in_format(const StoredTensor& from, Format format, Sign sign);

// "fp32", "bf16_stochastic", …; Throws Error with all names where there is none of that name.
Format format_of(const std::string& name);

}  // namespace forge
