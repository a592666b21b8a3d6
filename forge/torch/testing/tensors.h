#pragma once

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "forge/base/error.h"

namespace forge::testing {

// Normally distributed numbers that depend on the seed only.
inline at::Tensor random(at::IntArrayRef sizes, std::uint64_t seed, at::ScalarType dtype = at::kFloat) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(sizes, generator, at::kFloat).to(dtype);
}

inline at::Tensor zero_weight(std::int64_t out, std::int64_t in, at::ScalarType dtype = at::kFloat) {
  return at::zeros({out, in}, dtype);
}

// A leaf of its own that requires a gradient.
inline at::Tensor parameter(const at::Tensor& values) { return values.detach().clone().requires_grad_(); }

inline ::testing::AssertionResult same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return ::testing::AssertionFailure() << "one tensor is undefined";
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type())
    return ::testing::AssertionFailure() << a.sizes() << " " << a.scalar_type() << " and " << b.sizes() << " "
                                         << b.scalar_type();
  at::Tensor x = a.detach().contiguous(), y = b.detach().contiguous();
  if (x.nbytes() == 0 || std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "largest difference "
                                       << (x.to(at::kDouble) - y.to(at::kDouble)).abs().max().item<double>();
}

// |a − b| ≤ bound, element by element.
inline ::testing::AssertionResult within(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bound) {
  at::Tensor excess = (a.detach().to(at::kDouble) - b.detach().to(at::kDouble)).abs() - bound.to(at::kDouble);
  if (excess.numel() == 0 || excess.max().item<double>() <= 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "the bound is exceeded by " << excess.max().item<double>();
}

// What two fp32 sums of dYᵀX over T tokens may differ by, whatever their order: 2 T ε |dY|ᵀ|X|.
inline at::Tensor sum_bound(const at::Tensor& dY, const at::Tensor& X) {
  at::Tensor a = dY.detach().to(at::kDouble).abs(), b = X.detach().to(at::kDouble).abs();
  return a.t().mm(b) * (2.0 * static_cast<double>(dY.size(0)) * 0x1p-24);
}

inline auto throws(const std::string& part) { return ::testing::ThrowsMessage<Error>(::testing::HasSubstr(part)); }

}  // namespace forge::testing
