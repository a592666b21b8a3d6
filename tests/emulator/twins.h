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
inline std::uint32_t __shfl_sync(unsigned, std::uint32_t value, int lane) {
  return forge::emulator::warp_shuffle(value, lane);
}
inline std::uint32_t __shfl_xor_sync(unsigned, std::uint32_t value, int lanes) {
  return forge::emulator::warp_shuffle(value, static_cast<int>(forge::emulator::thread_idx.x % 32) ^ lanes);
}

namespace forge::emulator {

// How kernels are run, by what device, and what became of them since this was last set.
struct Session {
  Schedule schedule;
  Outcome outcome;
  int launches = 0;
  int capability = 90;
  int multiprocessors = 3;
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

using emulator::barrier_arrive;
using emulator::barrier_sync;
template <int kRegisters>
void increase_registers() {
  emulator::set_max_registers(kRegisters);
}
template <int kRegisters>
void decrease_registers() {
  emulator::set_max_registers(kRegisters);
}

using emulator::mbarrier_arrive;
using emulator::mbarrier_arrive_expect_tx;
using emulator::mbarrier_init;
using emulator::mbarrier_init_fence;
using emulator::mbarrier_wait_parity;

using emulator::TensorMap;
inline TensorMap encode_tensor_map(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride_bytes,
                                   std::uint32_t box_rows, std::uint32_t box_cols) {
  auto unsign = [](std::int64_t n) { return static_cast<std::uint64_t>(n); };
  return emulator::encode_tensor_map(
      {data, unsign(cols), unsign(rows), unsign(stride_bytes), box_cols, box_rows, emulator::Swizzle::b128});
}
using emulator::tma_load_2d;

using emulator::shared_address;
using emulator::wgmma_commit;
using emulator::wgmma_fence;
template <int kPending>
void wgmma_wait() {
  emulator::wgmma_wait(kPending);
}
template <int n>
void wgmma_registers(float (&)[n]) {}
inline void wgmma_m64n128k16_bf16(float (&d)[64], std::uint64_t a, std::uint64_t b, bool accumulate) {
  emulator::wgmma_mn_major(d, 128, a, b, accumulate);
}

struct DeviceFacts {
  int capability;
  int multiprocessors;
};
inline DeviceFacts device_facts() { return {emulator::session.capability, emulator::session.multiprocessors}; }

template <class Parameter>
void launch_kernel(void (*kernel)(const Parameter&), dim3 grid, unsigned threads, std::size_t shared_bytes, void*,
                   const Parameter& parameter) {
  auto& [schedule, outcome, launches, capability, multiprocessors] = emulator::session;
  ++launches;
  emulator::Outcome now = emulator::launch(grid, {threads}, shared_bytes, schedule, [&] { kernel(parameter); });
  ++schedule.seed;
  outcome.deadlock += now.deadlock;
  outcome.violations.insert(outcome.violations.end(), now.violations.begin(), now.violations.end());
  outcome.notes.insert(outcome.notes.end(), now.notes.begin(), now.notes.end());
}

}  // namespace forge::cuda
