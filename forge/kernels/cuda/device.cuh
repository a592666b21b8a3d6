#pragma once

// The CUDA language, on a GPU or under an emulator. FORGE_EMULATE is the name of a header that defines for a C++
// compiler what the kernels use of it: the language's words, twins of the wrappers in ptx/ and launch_kernel below.
#ifdef FORGE_EMULATE
#include FORGE_EMULATE
#else

#include <cuda_runtime.h>

#include <cstddef>

#include "forge/base/error.h"

#define FORGE_DEVICE __device__ __forceinline__
// A kernel's one parameter: where the launch has put it, not a copy of each thread.
#define FORGE_PARAMETER(...) const __grid_constant__ __VA_ARGS__
#define FORGE_UNROLL _Pragma("unroll")
#define FORGE_NO_UNROLL _Pragma("unroll 1")
// The shared memory of the launch. 1024 bytes: the widest swizzle pattern.
#define FORGE_DYNAMIC_SHARED(type, name) extern __shared__ __align__(1024) type name[]

namespace forge::cuda {

inline void check_launch(cudaError_t error) {
  check(error == cudaSuccess, "CUDA refuses a kernel: ", cudaGetErrorString(error));
}

// The device that the host's thread has chosen.
struct DeviceFacts {
  int capability;  // 90 for 9.0
  int multiprocessors;
};
inline DeviceFacts device_facts() {
  int device = 0;
  check_launch(cudaGetDevice(&device));
  auto fact = [&](cudaDeviceAttr which) {
    int value = 0;
    check_launch(cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  return {10 * fact(cudaDevAttrComputeCapabilityMajor) + fact(cudaDevAttrComputeCapabilityMinor),
          fact(cudaDevAttrMultiProcessorCount)};
}

// stream: a cudaStream_t. Throws Error where the driver refuses the launch.
template <class Parameter>
void launch_kernel(void (*kernel)(const Parameter), dim3 grid, unsigned threads, std::size_t shared_bytes, void* stream,
                   const Parameter& parameter) {
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking)
    check_launch(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(parameter);
  check_launch(cudaGetLastError());
}

}  // namespace forge::cuda
#endif
