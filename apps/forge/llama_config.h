#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace forge::app {

// The shape of a Llama-family model, in Hugging Face's terms.
struct LlamaConfig {
  std::int64_t vocab = 4096;
  std::int64_t hidden = 320;
  std::int64_t intermediate = 864;
  std::int64_t layers = 6;
  std::int64_t heads = 5;
  std::int64_t kv_heads = 5;
  std::int64_t head_dim = 64;
  std::int64_t max_positions = 2048;
  double rope_theta = 10000;
  double norm_eps = 1e-5;
  bool tied = false;  // the head is the embedding's matrix

  // Throws Error where the sizes contradict each other.
  void validate() const;
  // Exact below 2^53, and no overflow for sizes that no memory holds.
  double parameters() const;
};

struct Preset {
  const char* name;
  const char* about;
  LlamaConfig config;
};

// The one list of presets.
const std::vector<Preset>& presets();

// Sizes given on the command line; what is absent comes from the preset or, where hidden is given, follows from it:
// heads of 64, as many key-value heads, an intermediate size of 8/3 hidden.
struct ShapeOptions {
  std::string preset = "demo-10m";
  std::optional<std::int64_t> hidden = {}, intermediate = {}, layers = {}, heads = {}, kv_heads = {};
  std::optional<double> rope_theta = {}, norm_eps = {};
  bool tied = false;
};

// Validated. Throws Error where the preset is unknown or the sizes contradict each other.
LlamaConfig make_config(const ShapeOptions& shape, std::int64_t vocab, std::int64_t seq);

}  // namespace forge::app
