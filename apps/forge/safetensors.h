#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "apps/forge/llama.h"

namespace forge::app {

// The safetensors format: a header's length in 8 bytes, little-endian; the header, JSON that gives each tensor's dtype,
// shape and place; the tensors' bytes. fp32, bf16 and fp16 are read and written.

// Throws Error where the file is unreadable or its layout is not whole: tensors have to fill the data without holes or
// overlaps, from its first byte to its last, as the format's own library demands.
// Only tensors whose names are wanted are read.
std::map<std::string, at::Tensor> read_safetensors(
    const std::filesystem::path& path,
    const std::function<bool(const std::string&)>& wanted = [](const std::string&) { return true; });
Shapes read_safetensors_shapes(const std::filesystem::path& path);
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors);

}  // namespace forge::app
