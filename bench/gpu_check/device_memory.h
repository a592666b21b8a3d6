#pragma once

#include <cstddef>

// A device's memory; under an emulator, which runs kernels on the host's, more of that.
#ifdef FORGE_EMULATE
#include <cstdlib>
#include <cstring>

namespace forge::gpu_check {

inline void* allocate(std::size_t bytes) { return std::malloc(bytes); }
inline void release(void* p) { std::free(p); }
inline void copy_to_device(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
inline void copy_to_host(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

}  // namespace forge::gpu_check
#else
#include <cuda_runtime.h>

#include "forge/base/error.h"

namespace forge::gpu_check {

// Throws Error with what CUDA says, of this call or of a kernel before it.
inline void check_cuda(cudaError_t error) { check(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error)); }

inline void* allocate(std::size_t bytes) {
  void* p = nullptr;
  check_cuda(cudaMalloc(&p, bytes));
  return p;
}
inline void release(void* p) { cudaFree(p); }
inline void copy_to_device(void* to, const void* from, std::size_t bytes) {
  check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
// Waits for the kernels before it.
inline void copy_to_host(void* to, const void* from, std::size_t bytes) {
  check_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}

}  // namespace forge::gpu_check
#endif
