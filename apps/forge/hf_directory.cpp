#include "apps/forge/hf_directory.h"

#include <unistd.h>

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
// What stands for a model and would contradict a new one beside it.
constexpr const char* kModelFiles[] = {kConfig,          kWeights,    kIndex,          kTokenizer,
                                       kTokenizerConfig, kGeneration, "tokenizer.json"};

json read_json(const fs::path& path) {
  std::ifstream file(path);
  check(file.is_open(), "--init: cannot read ", path, "; name a Hugging Face directory of a Llama");
  json value = json::parse(file, nullptr, /*allow_exceptions=*/false);
  check(value.is_object(), "--init: ", path, " is not a JSON object");
  return value;
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  check(!file.fail(), "--out: cannot write ", path, "; is the disk full?");
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

void write_files(const fs::path& folder, const Llama& model, const Tokenizer& tokenizer) {
  write_text(folder / kConfig, config_text(model, tokenizer));
  write_text(folder / kGeneration, generation_text(tokenizer));
  write_safetensors(folder / kWeights, model.parameters());
  if (tokenizer.is_bytes()) return;
  write_text(folder / kTokenizer, tokenizer.serialized());
  write_text(folder / kTokenizerConfig, tokenizer_text());
}

void move_into(const fs::path& from, const fs::path& out) {
  for (const char* name : kModelFiles) fs::remove(out / name);
  for (const auto& entry : fs::directory_iterator(from)) fs::rename(entry.path(), out / entry.path().filename());
  fs::remove(from);
}

}  // namespace

LlamaConfig read_config(const fs::path& directory) try {
  const json config = read_json(directory / kConfig);
  refuse_unsupported(config);
  LlamaConfig c;
  c.vocab = config.at("vocab_size");
  c.hidden = config.at("hidden_size");
  c.intermediate = config.at("intermediate_size");
  c.layers = config.at("num_hidden_layers");
  c.heads = config.at("num_attention_heads");
  c.kv_heads = value_or(config, "num_key_value_heads", c.heads);
  check(c.heads > 0, "--init: config.json has no heads");
  c.head_dim = value_or(config, "head_dim", c.hidden / c.heads);
  c.max_positions = value_or(config, "max_position_embeddings", c.max_positions);
  c.rope_theta = rope_theta_of(config);
  c.norm_eps = value_or(config, "rms_norm_eps", 1e-6);
  c.tied = value_or(config, "tie_word_embeddings", false);
  c.validate();
  return c;
} catch (const json::exception& error) {
  fail("--init: ", directory / kConfig, " does not describe a Llama (", error.what(), ")");
}

std::map<std::string, at::Tensor> read_weights(const fs::path& directory) {
  if (fs::exists(directory / kWeights)) return read_safetensors(directory / kWeights);
  check(fs::exists(directory / kIndex), "--init: ", directory, " holds neither ", kWeights, " nor ", kIndex,
        "; convert the weights to safetensors");
  std::set<std::string> shards;
  const json index = read_json(directory / kIndex);
  check(index.contains("weight_map") && index["weight_map"].is_object(), "--init: ", kIndex, " has no weight_map");
  for (const auto& [name, shard] : index["weight_map"].items()) shards.insert(shard.get<std::string>());
  std::map<std::string, at::Tensor> weights;
  for (const std::string& shard : shards) weights.merge(read_safetensors(directory / shard));
  return weights;
}

void check_writable(const fs::path& out, bool force) {
  check(!fs::exists(out) || fs::is_directory(out), "--out: ", out, " is a file; name a folder");
  check(force || !fs::exists(out) || fs::is_empty(out), "--out: ", out,
        " is not empty; name another folder, or give --force to replace the model in it");
  fs::path parent = fs::absolute(out);
  while (!fs::exists(parent)) parent = parent.parent_path();
  check(access(parent.c_str(), W_OK) == 0, "--out: no permission to write in ", parent, "; name another folder");
}

void write_directory(const fs::path& out, const Llama& model, const Tokenizer& tokenizer) {
  const fs::path target = fs::absolute(out / "").parent_path();
  const fs::path partial = target.parent_path() / (target.filename().string() + ".partial-" + std::to_string(getpid()));
  fs::create_directories(partial);
  try {
    write_files(partial, model, tokenizer);
    if (fs::exists(target) && !fs::is_empty(target)) return move_into(partial, target);
    fs::remove(target);
    fs::rename(partial, target);
  } catch (...) {
    fs::remove_all(partial);
    throw;
  }
}

}  // namespace forge::app
