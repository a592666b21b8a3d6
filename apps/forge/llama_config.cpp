#include "apps/forge/llama_config.h"

#include <algorithm>
#include <limits>

#include "forge/base/error.h"

namespace forge::app {
namespace {

constexpr std::int64_t kHeadDim = 64;
constexpr std::int64_t kDefaultPositions = 2048;
// Ids are of 32 bits, and a product of two sizes is counted in 64.
constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();

LlamaConfig preset_of(const std::string& name) {
  std::string known;
  for (const Preset& preset : presets()) {
    if (name == preset.name) return preset.config;
    known += (known.empty() ? "" : ", ") + std::string(preset.name);
  }
  fail("--preset: there is no ", name, "; the presets are ", known);
}

void check_size(std::int64_t size) {
  check(size <= kLargest, "model: a size of ", size, " is above ", kLargest, "; give less");
}

void follow_hidden(LlamaConfig& config, std::int64_t hidden) {
  check_size(hidden);
  config.hidden = hidden;
  config.heads = config.kv_heads = std::max<std::int64_t>(1, hidden / kHeadDim);
  config.intermediate = (hidden * 8 / 3 + 31) / 32 * 32;
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> list = {
      {"tiny",
       "2 layers of 64, to see that everything runs",
       {.hidden = 64, .intermediate = 176, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 16}},
      {"demo-10m", "6 layers of 320, learns something in minutes", {}},
      {"47m",
       "3 layers of 1024, where the weights outweigh the tokens",
       {.hidden = 1024, .intermediate = 2816, .layers = 3, .heads = 16, .kv_heads = 16}},
      {"110m", "12 layers of 768", {.hidden = 768, .intermediate = 2048, .layers = 12, .heads = 12, .kv_heads = 12}},
  };
  return list;
}

void LlamaConfig::validate() const {
  const bool positive = std::min({vocab, hidden, intermediate, layers, heads, kv_heads, head_dim}) > 0;
  check(positive, "model: every size must be at least 1");
  check_size(std::max({vocab, hidden, intermediate, layers, heads, kv_heads, head_dim}));
  constexpr double kFinite = std::numeric_limits<float>::max();
  check(0 < rope_theta && rope_theta <= kFinite, "model: a base of the rotary positions of ", rope_theta,
        " is not above 0 and finite in fp32");
  check(0 <= norm_eps && norm_eps <= kFinite, "model: an epsilon of the norms of ", norm_eps,
        " is negative or not finite in fp32");
  check(heads % kv_heads == 0, "model: --heads ", heads, " is no multiple of --kv-heads ", kv_heads,
        "; every key-value head serves the same number of heads");
  check(head_dim % 2 == 0, "model: heads of ", head_dim,
        " cannot be rotated in halves; choose --hidden and --heads so that "
        "hidden / heads is even");
}

double LlamaConfig::parameters() const {
  const auto attention = static_cast<double>(heads + kv_heads) * static_cast<double>(head_dim);
  const double layer = 2 * attention + static_cast<double>(3 * intermediate + 2);
  const double rows = static_cast<double>((tied ? 1 : 2) * vocab + 1) + static_cast<double>(layers) * layer;
  return rows * static_cast<double>(hidden);
}

LlamaConfig make_config(const ShapeOptions& shape, std::int64_t vocab, std::int64_t seq) {
  LlamaConfig config = preset_of(shape.preset);
  if (shape.hidden) follow_hidden(config, *shape.hidden);
  config.intermediate = shape.intermediate.value_or(config.intermediate);
  config.layers = shape.layers.value_or(config.layers);
  config.kv_heads = shape.kv_heads.value_or(shape.heads ? *shape.heads : config.kv_heads);
  config.heads = shape.heads.value_or(config.heads);
  config.rope_theta = shape.rope_theta.value_or(config.rope_theta);
  config.norm_eps = shape.norm_eps.value_or(config.norm_eps);
  config.tied = shape.tied;
  config.vocab = vocab;
  config.max_positions = std::max(seq, kDefaultPositions);
  check(config.heads > 0 && config.hidden % config.heads == 0, "model: --hidden ", config.hidden,
        " is not divisible by --heads ", config.heads, "; choose --heads that divides it");
  config.head_dim = config.hidden / config.heads;
  config.validate();
  return config;
}

}  // namespace forge::app
