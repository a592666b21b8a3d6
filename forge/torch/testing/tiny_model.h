#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "forge/torch/functional.h"
#include "forge/torch/testing/tensors.h"

namespace forge::testing {

// Token embedding, a norm with a weight, two layers (one with a bias, used twice), a head that is tied to the
// embedding.
struct TinyModel {
  at::Tensor table, norm, up, up_bias, down;

  explicit TinyModel(at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) {
    auto on_device = [&](const at::Tensor& values) { return parameter(values.to(device, dtype)); };
    table = on_device(random({29, 16}, 1, dtype) * 0.5);
    norm = on_device(at::ones({16}));
    up = on_device(random({24, 16}, 2, dtype) * 0.25);
    up_bias = on_device(at::zeros({24}));
    down = on_device(random({16, 24}, 3, dtype) * 0.25);
  }

  std::vector<at::Tensor> parameters() const { return {table, norm, up, up_bias, down}; }

  // tokens (B, S) → the mean cross entropy of each token's successor.
  at::Tensor loss(const at::Tensor& tokens) const {
    at::Tensor h = forge::embedding(tokens, table);
    for (int use = 0; use < 2; ++use) {
      at::Tensor n = h * (h.pow(2).mean(-1, true) + 1e-5).rsqrt() * norm;
      h = h + forge::linear(at::tanh(forge::linear(n, up, up_bias)), down);
    }
    at::Tensor logits = forge::linear(h, table).slice(1, 0, tokens.size(1) - 1);
    at::Tensor next = tokens.slice(1, 1);
    return at::cross_entropy_loss(logits.reshape({-1, 29}).to(at::kFloat), next.reshape({-1}));
  }

  // Tokens that depend on the number only.
  static at::Tensor batch(std::uint64_t number) {
    auto generator = at::detail::createCPUGenerator(100 + number);
    return at::randint(0, 29, {2, 7}, generator, at::kLong);
  }
};

}  // namespace forge::testing
