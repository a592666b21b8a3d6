#include "apps/forge/hf_directory.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/forge/safetensors.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kConfig = "config.json";
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kTokenizer = "tokenizer.model";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kGeneration = "generation_config.json";
// What stands for a model and would contradict a new one beside it, beside its shards. Without the last there is none.
constexpr const char* kModelFiles[] = {kWeights,
                                       kIndex,
                                       kTokenizer,
                                       kTokenizerConfig,
                                       kGeneration,
                                       "tokenizer.json",
                                       "chat_template.jinja",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       kConfig};

// A folder opens like a file, and a pipe that nobody writes to never does.
bool is_file(const fs::path& path) {
  std::error_code unreadable;
  return fs::is_regular_file(path, unreadable);
}

json read_json(const fs::path& path) {
  std::ifstream file;
  if (is_file(path)) file.open(path);
  check(file.is_open(), "--init: cannot read ", path, "; name a Hugging Face directory of a Llama");
  json value = json::parse(file, nullptr, /*allow_exceptions=*/false);
  check(value.is_object(), "--init: ", path, " is not a JSON object");
  return value;
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  check(!file.fail(), "cannot write ", path);
}

// A value that is absent or null counts as the default.
template <class T>
T value_or(const json& object, const char* key, T otherwise) {
  return object.contains(key) && !object.at(key).is_null() ? object.at(key).get<T>() : otherwise;
}

void refuse_unsupported(const json& config) {
  const auto type = value_or<std::string>(config, "model_type", "");
  check(type == "llama", "--init: config.json is of model_type \"", type, "\"; only \"llama\" can be trained here");
  const auto activation = value_or<std::string>(config, "hidden_act", "silu");
  check(activation == "silu", "--init: config.json asks for hidden_act \"", activation, "\"; only silu is built here");
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    check(!value_or(config, bias, false), "--init: config.json asks for ", bias, ", which is not built here");
  }
}

// rope_theta stands at the top or, in newer files, in rope_parameters.
double rope_theta_of(const json& config) {
  double theta = value_or(config, "rope_theta", 10000.0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json rope = value_or(config, key, json::object());
    const auto type = value_or(rope, "rope_type", value_or<std::string>(rope, "type", "default"));
    check(type == "default", "--init: config.json asks for rotary positions of type \"", type,
          "\"; only the plain ones are built here");
    theta = value_or(rope, "rope_theta", theta);
  }
  return theta;
}

std::string config_text(const Llama& model, const Tokenizer& tokenizer) {
  const LlamaConfig& c = model.config();
  ordered_json config = {{"architectures", {"LlamaForCausalLM"}},
                         {"model_type", "llama"},
                         {"vocab_size", c.vocab},
                         {"hidden_size", c.hidden},
                         {"intermediate_size", c.intermediate},
                         {"num_hidden_layers", c.layers},
                         {"num_attention_heads", c.heads},
                         {"num_key_value_heads", c.kv_heads},
                         {"head_dim", c.head_dim},
                         {"max_position_embeddings", c.max_positions},
                         {"rope_theta", c.rope_theta},
                         {"rms_norm_eps", c.norm_eps},
                         {"tie_word_embeddings", c.tied},
                         {"hidden_act", "silu"},
                         {"attention_bias", false},
                         {"mlp_bias", false},
                         {"initializer_range", 0.02},
                         {"bos_token_id", nullptr},
                         {"eos_token_id", nullptr}};
  const bool bf16 = model.parameters().front().tensor.scalar_type() == at::kBFloat16;
  config["torch_dtype"] = bf16 ? "bfloat16" : "float32";
  if (const auto bos = tokenizer.bos()) config["bos_token_id"] = *bos;
  if (const auto eos = tokenizer.eos()) config["eos_token_id"] = *eos;
  return config.dump(2) + "\n";
}

std::string generation_text(const Tokenizer& tokenizer) {
  ordered_json config = ordered_json::object();
  if (const auto bos = tokenizer.bos()) config["bos_token_id"] = *bos;
  if (const auto eos = tokenizer.eos()) config["eos_token_id"] = *eos;
  return config.dump(2) + "\n";
}

std::string tokenizer_text() {
  const ordered_json config = {{"tokenizer_class", "LlamaTokenizer"},
                               {"bos_token", "<s>"},
                               {"eos_token", "</s>"},
                               {"unk_token", "<unk>"},
                               {"add_bos_token", false},
                               {"add_eos_token", false},
                               {"add_prefix_space", false},
                               {"legacy", false},
                               {"clean_up_tokenization_spaces", false}};
  return config.dump(2) + "\n";
}

// The name of a file beside the index; it may not lead elsewhere.
bool is_shard(const json& shard) {
  if (!shard.is_string()) return false;
  const auto name = shard.get<std::string>();
  return name.ends_with(".safetensors") && name.find_first_of(std::string("/\0", 2)) == std::string::npos;
}

std::set<std::string> shards_of(const json& index) {
  check(index.contains("weight_map") && index["weight_map"].is_object(), "--init: ", kIndex, " has no weight_map");
  std::set<std::string> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    check(is_shard(shard), "--init: ", kIndex, " says that ", name, " is in ", shard.dump(),
          ", which is no name of a .safetensors file beside it; copy or download the folder again");
    shards.insert(shard.get<std::string>());
  }
  return shards;
}

std::vector<fs::path> weight_files(const fs::path& directory) {
  if (is_file(directory / kWeights)) return {directory / kWeights};
  check(is_file(directory / kIndex), "--init: ", directory, " holds neither ", kWeights, " nor ", kIndex,
        "; convert the weights to safetensors");
  std::vector<fs::path> files;
  for (const std::string& shard : shards_of(read_json(directory / kIndex))) files.push_back(directory / shard);
  return files;
}

// Old files hold a copy of what is computed from the config; transformers pass over it, too.
bool is_weight(const std::string& name) { return !name.ends_with("rotary_emb.inv_freq"); }

// An integer is nothing that only rounds to one.
std::int64_t integer(const json& config, const char* key) {
  const json& value = config.at(key);
  check(value.is_number_integer(), "--init: config.json says that ", key, " is ", value.dump(),
        ", which is no integer");
  return value.get<std::int64_t>();
}

std::int64_t integer_or(const json& config, const char* key, std::int64_t otherwise) {
  return config.contains(key) && !config.at(key).is_null() ? integer(config, key) : otherwise;
}

}  // namespace

LlamaConfig read_config(const fs::path& directory) try {
  const json config = read_json(directory / kConfig);
  refuse_unsupported(config);
  LlamaConfig c;
  c.vocab = integer(config, "vocab_size");
  c.hidden = integer(config, "hidden_size");
  c.intermediate = integer(config, "intermediate_size");
  c.layers = integer(config, "num_hidden_layers");
  c.heads = integer(config, "num_attention_heads");
  c.kv_heads = integer_or(config, "num_key_value_heads", c.heads);
  check(c.heads > 0, "--init: config.json has no heads");
  c.head_dim = integer_or(config, "head_dim", c.hidden / c.heads);
  c.max_positions = integer_or(config, "max_position_embeddings", c.max_positions);
  c.rope_theta = rope_theta_of(config);
  c.norm_eps = value_or(config, "rms_norm_eps", 1e-6);
  c.tied = value_or(config, "tie_word_embeddings", false);
  c.validate();
  return c;
} catch (const json::exception& error) {
  fail("--init: ", directory / kConfig, " does not describe a Llama (", error.what(), ")");
}

Shapes read_shapes(const fs::path& directory) {
  Shapes shapes;
  for (const fs::path& file : weight_files(directory)) shapes.merge(read_safetensors_shapes(file));
  std::erase_if(shapes, [](const auto& entry) { return !is_weight(entry.first); });
  return shapes;
}

std::map<std::string, at::Tensor> read_weights(const fs::path& directory) {
  std::map<std::string, at::Tensor> weights;
  for (const fs::path& file : weight_files(directory)) weights.merge(read_safetensors(file, is_weight));
  return weights;
}

std::vector<std::string> model_files(const fs::path& directory) {
  std::vector<std::string> files;
  if (is_file(directory / kIndex)) {
    std::ifstream file(directory / kIndex);
    const json index = json::parse(file, nullptr, /*allow_exceptions=*/false);
    if (index.is_object() && index.contains("weight_map"))
      for (const json& shard : index["weight_map"])
        if (is_shard(shard)) files.push_back(shard);
  }
  files.insert(files.end(), std::begin(kModelFiles), std::end(kModelFiles));
  return files;
}

std::uint64_t weight_bytes(const Llama& model) {
  std::uint64_t bytes = 0;
  for (const auto& [name, tensor] : model.parameters()) bytes += tensor.nbytes();
  return bytes;
}

void write_directory(const fs::path& folder, const Llama& model, const Tokenizer& tokenizer) {
  write_text(folder / kConfig, config_text(model, tokenizer));
  write_text(folder / kGeneration, generation_text(tokenizer));
  write_safetensors(folder / kWeights, model.parameters());
  if (tokenizer.is_bytes()) return;
  write_text(folder / kTokenizer, tokenizer.serialized());
  write_text(folder / kTokenizerConfig, tokenizer_text());
}

}  // namespace forge::app
