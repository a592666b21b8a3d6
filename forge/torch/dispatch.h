#pragma once

#include <torch/library.h>

namespace forge {

// Puts our autograd kernels of aten::linear, aten::matmul and aten::embedding (functional.h) before torch's own for one
// kind of device: m is TORCH_LIBRARY_IMPL(aten, AutogradCPU, m) or its like. What they do not record goes on to
// torch's.
void put_before_linear(torch::Library& m);
void put_before_embedding(torch::Library& m);

}  // namespace forge
