#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace forge::emulator {

inline const at::Device kGpu(at::kPrivateUse1, 0), kCpu(at::kCPU);

// How often the host has waited for numbers from the emulated device: copies of its memory to the host's, items, and
// operations of torch whose result, or its shape, the host has to know. torch.ops.emulated.read_backs() in Python.
std::int64_t read_backs();

}  // namespace forge::emulator
