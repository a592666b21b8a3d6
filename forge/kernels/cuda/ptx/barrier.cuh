#pragma once

#include "forge/kernels/cuda/device.cuh"

#ifndef FORGE_EMULATE
namespace forge::cuda {

// Named barriers of a block, 1 to 15 (0 is __syncthreads): complete when so many threads, whole warps, have come to
// one or the other. sync waits for that, arrive does not.
FORGE_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
FORGE_DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// How many registers each thread of a warpgroup has from here on, a multiple of 8; waits until the multiprocessor has
// them. All four warps together. sm_90a.
template <int kRegisters>
FORGE_DEVICE void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
FORGE_DEVICE void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace forge::cuda
#endif
