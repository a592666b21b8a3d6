#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "apps/forge/llama.h"

namespace forge::app {

// The safetensors format: a header's length in 8 bytes, little-endian; the header, JSON that gives each tensor's dtype,
// shape and place; the tensors' bytes. fp32, bf16 and fp16 are read and written.

// Throws Error where the file is unreadable, cut short or its header does not fit it.
std::map<std::string, at::Tensor> read_safetensors(const std::filesystem::path& path);
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors);

}  // namespace forge::app
