#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "apps/forge/llama.h"
#include "apps/forge/llama_config.h"
#include "apps/forge/tokenizer.h"

namespace forge::app {

// A Hugging Face directory: config.json, model.safetensors (or its shards, read only), generation_config.json and,
// unless the tokens are bytes, tokenizer.model and tokenizer_config.json.

// Throws Error where config.json is absent, is no Llama's, or asks for what is not built here.
LlamaConfig read_config(const std::filesystem::path& directory);
// The weights of one file or of its shards, without old files' rotary_emb.inv_freq: their shapes, from the headers
// alone, and their values. Throw Error where a file is absent, damaged or elsewhere.
Shapes read_shapes(const std::filesystem::path& directory);
std::map<std::string, at::Tensor> read_weights(const std::filesystem::path& directory);

// All names that may belong to a model in the directory, as OutFolder wants them: those that are written, those that
// would contradict them and the shards that an index there names.
std::vector<std::string> model_files(const std::filesystem::path& directory);
std::uint64_t weight_bytes(const Llama& model);
// Writes to an empty folder.
void write_directory(const std::filesystem::path& folder, const Llama& model, const Tokenizer& tokenizer);

}  // namespace forge::app
