#pragma once

#include "forge/kernels/cuda/ptx/shared.cuh"

#ifndef FORGE_EMULATE
namespace forge::cuda {

// 16 bytes to shared memory, of which `bytes` are read and the others are zeros; both addresses multiples of 16. sm_80.
FORGE_DEVICE void cp_async_16(void* dst, const void* src, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes)
               : "memory");
}
FORGE_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Returns when all but the last kPending groups of this thread have landed.
template <int kPending>
FORGE_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace forge::cuda
#endif
