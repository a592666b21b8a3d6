#pragma once

#include "forge/kernels/cuda/device.cuh"

#ifndef FORGE_EMULATE
#include <cstdint>

namespace forge::cuda {

// The address in the shared window, which instructions take.
FORGE_DEVICE std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

}  // namespace forge::cuda
#endif
