#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "apps/forge/llama.h"
#include "apps/forge/llama_config.h"
#include "apps/forge/tokenizer.h"

namespace forge::app {

// A Hugging Face directory: config.json, model.safetensors (or its shards, read only), generation_config.json and,
// unless the tokens are bytes, tokenizer.model and tokenizer_config.json.

// Throws Error where config.json is absent, is no Llama's, or asks for what is not built here.
LlamaConfig read_config(const std::filesystem::path& directory);
std::map<std::string, at::Tensor> read_weights(const std::filesystem::path& directory);

// Throws Error where `out` cannot become such a directory: a file, or a folder that is not empty unless `force`.
void check_writable(const std::filesystem::path& out, bool force);
// Writes to a sibling folder first, so that `out` holds all or nothing. In a folder that is not empty (checked above)
// a model's files are replaced and all others stay.
void write_directory(const std::filesystem::path& out, const Llama& model, const Tokenizer& tokenizer);

}  // namespace forge::app
