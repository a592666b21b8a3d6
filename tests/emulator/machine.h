#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// One streaming multiprocessor, as far as the PTX ISA defines it, so that the source of CUDA kernels runs on a CPU. The
// threads of a block are fibers on one host thread, scheduled in a random order drawn from a seed; what is asynchronous
// (TMA, wgmma, cp.async) takes effect at random later times. docs/cuda.md says what this proves and what it cannot.
namespace forge::emulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
extern Dim3 thread_idx, block_idx, block_dim, grid_dim;  // of the fiber that is running

// When an asynchronous operation takes effect: at once, at a random time, or only when no thread can go on without it.
enum class Pace { eager, random, lazy };

struct Schedule {
  std::uint64_t seed = 1;
  Pace tma = Pace::random, mma = Pace::random, cp_async = Pace::random;
  bool priorities = false;  // warps run by random priorities (one may stall for long) instead of uniformly
  // The first 8 seeds cover the extreme combinations, the others are drawn.
  static Schedule from_seed(std::uint64_t seed);
  std::string describe() const;
};

struct Outcome {
  std::string deadlock;                 // who waits where; empty where all threads came to their end
  std::vector<std::string> violations;  // broken rules, each once
  std::vector<std::string> notes;       // allowed but untidy
  bool clean() const { return deadlock.empty() && violations.empty(); }
  std::string describe() const;
};

// Runs the blocks of a grid one after another, in a random order; stops at a deadlock.
Outcome launch(Dim3 grid, Dim3 block, std::size_t shared_bytes, const Schedule& schedule,
               const std::function<void()>& kernel);

// A 2-D tiled tensor map: what cuTensorMapEncodeTiled records, for elements of 16 bits.
enum class Swizzle : std::uint8_t { none = 0, b32 = 1, b64 = 2, b128 = 3 };
struct TensorMap {
  const void* base = nullptr;
  std::uint64_t inner = 0, outer = 0, stride_bytes = 0;
  std::uint32_t box_inner = 0, box_outer = 0;
  Swizzle swizzle = Swizzle::none;
};
// Throws std::invalid_argument where the driver would refuse.
TensorMap encode_tensor_map(const TensorMap& map);

// What a running thread may do; the names follow the PTX instructions.
void* dynamic_shared();
std::uint32_t shared_address(const void* p);

void mbarrier_init(std::uint64_t* bar, std::uint32_t count);
void mbarrier_init_fence();
void mbarrier_arrive(std::uint64_t* bar);
void mbarrier_arrive_expect_tx(std::uint64_t* bar, std::uint32_t bytes);
void mbarrier_wait_parity(std::uint64_t* bar, std::uint32_t parity);

void tma_load_2d(void* dst, const TensorMap& map, std::uint64_t* bar, int x, int y);

void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);
void warp_sync();
std::uint32_t warp_shuffle(std::uint32_t value, int source_lane);
void set_max_registers(int n);

// As forge/kernels/cuda/ptx/mma.cuh says.
void ldmatrix_x4_trans(std::uint32_t* result, const void* row);
void mma_m16n8k16(float* d, const std::uint32_t* a, const std::uint32_t* b, bool bf16);

void wgmma_mn_major(float* d, int n, std::uint64_t desc_a, std::uint64_t desc_b, bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

// 16 bytes, of which `bytes` are read and the others are zeros.
void cp_async_16(void* dst, const void* src, int bytes);
void cp_async_commit();
void cp_async_wait(int pending);

}  // namespace forge::emulator
