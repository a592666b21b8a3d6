#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>

#include "tests/emulator/machine.h"

// What FORGE_EMULATE stands for in forge/kernels/cuda: the part of the CUDA language that the kernels use, and twins of
// the wrappers in ptx/, by the same names and with the same arguments, performed by the emulated machine.

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FORGE_DEVICE inline
#define FORGE_PARAMETER(...) const __VA_ARGS__&
#define FORGE_UNROLL
#define FORGE_NO_UNROLL
#define FORGE_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(forge::emulator::dynamic_shared())

#define threadIdx (forge::emulator::thread_idx)
#define blockIdx (forge::emulator::block_idx)
#define blockDim (forge::emulator::block_dim)
#define gridDim (forge::emulator::grid_dim)

using dim3 = forge::emulator::Dim3;
// NOLINTBEGIN: CUDA's names
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  std::uint32_t x, y;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(std::uint32_t x, std::uint32_t y) { return {x, y}; }
inline uint4 make_uint4(std::uint32_t x, std::uint32_t y, std::uint32_t z, std::uint32_t w) { return {x, y, z, w}; }
// NOLINTEND

template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
inline void __syncthreads() { forge::emulator::barrier_sync(0, static_cast<int>(forge::emulator::block_dim.x)); }
inline void __syncwarp() { forge::emulator::warp_sync(); }
inline std::uint32_t __shfl_xor_sync(unsigned, std::uint32_t value, int lanes) {
  return forge::emulator::warp_shuffle(value, static_cast<int>(forge::emulator::thread_idx.x % 32) ^ lanes);
}

namespace forge::emulator {

// How kernels are run, and what became of them since this was last set.
struct Session {
  Schedule schedule;
  Outcome outcome;
  int launches = 0;
};
inline Session session;

}  // namespace forge::emulator

namespace forge::cuda {

inline void cp_async_16(void* dst, const void* src, int bytes) { emulator::cp_async_16(dst, src, bytes); }
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int kPending>
void cp_async_wait() {
  emulator::cp_async_wait(kPending);
}

inline void ldmatrix_x4_trans(std::uint32_t* result, const void* row) { emulator::ldmatrix_x4_trans(result, row); }
inline void mma_bf16(float* d, const std::uint32_t* a, const std::uint32_t* b) {
  emulator::mma_m16n8k16(d, a, b, true);
}
inline void mma_fp16(float* d, const std::uint32_t* a, const std::uint32_t* b) {
  emulator::mma_m16n8k16(d, a, b, false);
}

template <class Parameter>
void launch_kernel(void (*kernel)(const Parameter&), dim3 grid, unsigned threads, std::size_t shared_bytes, void*,
                   const Parameter& parameter) {
  auto& [schedule, outcome, launches] = emulator::session;
  ++launches;
  emulator::Outcome now = emulator::launch(grid, {threads}, shared_bytes, schedule, [&] { kernel(parameter); });
  ++schedule.seed;
  outcome.deadlock += now.deadlock;
  outcome.violations.insert(outcome.violations.end(), now.violations.begin(), now.violations.end());
  outcome.notes.insert(outcome.notes.end(), now.notes.begin(), now.notes.end());
}

}  // namespace forge::cuda
