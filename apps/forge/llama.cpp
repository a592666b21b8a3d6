#include "apps/forge/llama.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/silu.h>

#include <set>
#include <utility>

#include "forge/base/error.h"
#include "forge/torch/functional.h"

namespace forge::app {
namespace {

constexpr double kInitialSpread = 0.02;

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.pow(2).mean({-1}, /*keepdim=*/true) + eps);
  return weight * (wide * scale).to(x.scalar_type());
}

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";
std::string prefix_of(std::int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

// x (B, heads, S, head_dim): the halves (a, b) of each head turn into (a cos − b sin, b cos + a sin).
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const std::int64_t half = x.size(-1) / 2;
  const at::Tensor turned = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
  return x * cos + turned * sin;
}

}  // namespace

Llama::Llama(const LlamaConfig& config, at::ScalarType dtype, std::uint64_t seed, at::Device device)
    : config_(config), dtype_(dtype), device_(device) {
  config.validate();
  at::Generator random = at::detail::createCPUGenerator(seed);
  embedding_ = matrix(kEmbedding, config.vocab, config.hidden, random);
  for (std::int64_t i = 0; i < config.layers; ++i) layers_.push_back(make_layer(i, random));
  final_norm_ = norm(kFinalNorm);
  head_ = config.tied ? embedding_ : matrix(kHead, config.vocab, config.hidden, random);
}

std::vector<std::int64_t> Llama::Part::shape() const {
  return in == 0 ? std::vector<std::int64_t>{out} : std::vector<std::int64_t>{out, in};
}

std::vector<Llama::Part> Llama::parts(const LlamaConfig& c) {
  const std::int64_t queries = c.heads * c.head_dim, keys = c.kv_heads * c.head_dim;
  return {{&Layer::input_norm, "input_layernorm.weight", c.hidden, 0},
          {&Layer::q, "self_attn.q_proj.weight", queries, c.hidden},
          {&Layer::k, "self_attn.k_proj.weight", keys, c.hidden},
          {&Layer::v, "self_attn.v_proj.weight", keys, c.hidden},
          {&Layer::o, "self_attn.o_proj.weight", c.hidden, queries},
          {&Layer::post_norm, "post_attention_layernorm.weight", c.hidden, 0},
          {&Layer::gate, "mlp.gate_proj.weight", c.intermediate, c.hidden},
          {&Layer::up, "mlp.up_proj.weight", c.intermediate, c.hidden},
          {&Layer::down, "mlp.down_proj.weight", c.hidden, c.intermediate}};
}

Llama::Layer Llama::make_layer(std::int64_t index, at::Generator& random) {
  Layer layer;
  for (const Part& part : parts(config_)) {
    const std::string name = prefix_of(index) + part.name;
    layer.*part.tensor = part.in == 0 ? norm(name) : matrix(name, part.out, part.in, random);
  }
  return layer;
}

at::Tensor Llama::matrix(const std::string& name, std::int64_t out, std::int64_t in, at::Generator& random) {
  return add(name, at::empty({out, in}, at::kFloat).normal_(0, kInitialSpread, random));
}

at::Tensor Llama::norm(const std::string& name) { return add(name, at::ones({config_.hidden}, at::kFloat)); }

at::Tensor Llama::add(const std::string& name, at::Tensor values) {
  at::Tensor parameter = values.to(device_, dtype_).set_requires_grad(true);
  parameters_.push_back({name, parameter});
  return parameter;
}

Llama::Rotation Llama::rotation(std::int64_t length) const {
  const at::Tensor even = at::arange(0, config_.head_dim, 2, at::kFloat);
  const at::Tensor frequency = 1.0 / at::pow(at::Scalar(config_.rope_theta), even / config_.head_dim);
  const at::Tensor half = at::outer(at::arange(length, at::kFloat), frequency);
  const at::Tensor angle = at::cat({half, half}, -1);
  return {angle.cos().to(device_, dtype_), angle.sin().to(device_, dtype_)};
}

at::Tensor Llama::attention(const Layer& layer, const at::Tensor& x, const Rotation& rotation) const {
  const auto by_head = [&](const at::Tensor& weight) {
    return forge::linear(x, weight).unflatten(-1, {-1, config_.head_dim}).transpose(1, 2);
  };
  const at::Tensor q = rotate(by_head(layer.q), rotation.cos, rotation.sin);
  const at::Tensor k = rotate(by_head(layer.k), rotation.cos, rotation.sin);
  const at::Tensor mixed =
      at::scaled_dot_product_attention(q, k, by_head(layer.v), /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true,
                                       /*scale=*/std::nullopt, /*enable_gqa=*/config_.heads != config_.kv_heads);
  return forge::linear(mixed.transpose(1, 2).flatten(2), layer.o);
}

at::Tensor Llama::feed_forward(const Layer& layer, const at::Tensor& x) const {
  return forge::linear(at::silu(forge::linear(x, layer.gate)) * forge::linear(x, layer.up), layer.down);
}

at::Tensor Llama::logits(const at::Tensor& ids) const {
  const Rotation turn = rotation(ids.size(1));
  at::Tensor x = forge::embedding(ids.to(device_), embedding_);
  for (const Layer& layer : layers_) {
    x = x + attention(layer, rms_norm(x, layer.input_norm, config_.norm_eps), turn);
    x = x + feed_forward(layer, rms_norm(x, layer.post_norm, config_.norm_eps));
  }
  return forge::linear(rms_norm(x, final_norm_, config_.norm_eps), head_);
}

at::Tensor Llama::loss(const at::Tensor& windows) const {
  const std::int64_t seq = windows.size(1) - 1;
  const at::Tensor scores = logits(windows.narrow(1, 0, seq).contiguous());
  return at::cross_entropy_loss(scores.flatten(0, 1).to(at::kFloat), windows.narrow(1, 1, seq).flatten().to(device_));
}

void Llama::check_shapes(const LlamaConfig& config, const Shapes& shapes) {
  std::set<std::string> known;
  const auto expect = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
    const auto found = shapes.find(name);
    check(found != shapes.end(), "--init: the weights have no ", name, "; the folder must hold a whole Llama");
    check(found->second == shape, "--init: ", name, " is ", at::IntArrayRef(found->second), ", expected ",
          at::IntArrayRef(shape), " by config.json");
    known.insert(name);
  };
  expect(kEmbedding, {config.vocab, config.hidden});
  for (std::int64_t i = 0; i < config.layers; ++i)
    for (const Part& part : parts(config)) expect(prefix_of(i) + part.name, part.shape());
  expect(kFinalNorm, {config.hidden});
  if (!config.tied) expect(kHead, {config.vocab, config.hidden});
  for (const auto& [name, unused] : shapes) {
    const bool copy_of_tied_head = config.tied && name == kHead;
    check(known.contains(name) || copy_of_tied_head, "--init: ", name,
          " belongs to no plain Llama; such a model cannot be trained here");
  }
}

void Llama::load(const std::map<std::string, at::Tensor>& values) {
  at::NoGradGuard no_grad;
  Shapes shapes;
  for (const auto& [name, value] : values) shapes[name] = value.sizes().vec();
  check_shapes(config_, shapes);
  for (const auto& [name, tensor] : parameters_) {
    at::Tensor(tensor).copy_(values.at(name));
    check(at::isfinite(tensor).all().item<bool>(), "--init: ", name,
          " has values that are not finite, of which training makes nothing; start from a whole model");
  }
}

}  // namespace forge::app
