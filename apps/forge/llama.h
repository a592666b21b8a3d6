#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "apps/forge/llama_config.h"

namespace forge::app {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

// By a tensor's name.
using Shapes = std::map<std::string, std::vector<std::int64_t>>;

// A Llama as transformers defines it: RMSNorm before each half, rotary positions on the two halves of a head, grouped
// key-value heads, SwiGLU. Every matrix goes through forge::linear or forge::embedding, so that an optimizer of this
// library can hold its gradient as an expression.
class Llama {
 public:
  // Matrices from a normal distribution of 0.02 drawn in fp32 on the CPU in the parameters' order, norms 1.
  Llama(const LlamaConfig& config, at::ScalarType dtype, std::uint64_t seed, at::Device device = at::kCPU);

  // ids (B, S) int64, on any device → (B, S, vocab) in the weights' dtype, on their device.
  at::Tensor logits(const at::Tensor& ids) const;
  // Mean cross-entropy in fp32 of each token of windows (B, S + 1) given those before it.
  at::Tensor loss(const at::Tensor& windows) const;

  // Under Hugging Face's names; a tied head appears once, as the embedding.
  const std::vector<NamedTensor>& parameters() const { return parameters_; }
  const LlamaConfig& config() const { return config_; }

  // Throws Error where these are not the parameters of such a model: one is missing, unknown or of another shape.
  // Allocates nothing of the model's size, so that a config can be compared with its weights before it is acted on.
  static void check_shapes(const LlamaConfig& config, const Shapes& shapes);
  // Copies values in, in the weights' own dtype. Throws Error as check_shapes does and where a value is not finite.
  void load(const std::map<std::string, at::Tensor>& values);

 private:
  struct Layer {
    at::Tensor input_norm, q, k, v, o, post_norm, gate, up, down;
  };
  // One of a layer's tensors: (out, in), or a norm of `out` where `in` is 0.
  struct Part {
    at::Tensor Layer::*tensor;
    const char* name;
    std::int64_t out, in;
    std::vector<std::int64_t> shape() const;
  };
  static std::vector<Part> parts(const LlamaConfig& config);

  struct Rotation {
    at::Tensor cos, sin;  // (S, head_dim)
  };

  at::Tensor matrix(const std::string& name, std::int64_t out, std::int64_t in, at::Generator& random);
  at::Tensor norm(const std::string& name);
  at::Tensor add(const std::string& name, at::Tensor values);
  Layer make_layer(std::int64_t index, at::Generator& random);

  Rotation rotation(std::int64_t length) const;
  at::Tensor attention(const Layer& layer, const at::Tensor& x, const Rotation& rotation) const;
  at::Tensor feed_forward(const Layer& layer, const at::Tensor& x) const;

  LlamaConfig config_;
  at::ScalarType dtype_;
  at::Device device_;
  std::vector<NamedTensor> parameters_;
  at::Tensor embedding_, final_norm_, head_;
  std::vector<Layer> layers_;
};

}  // namespace forge::app
