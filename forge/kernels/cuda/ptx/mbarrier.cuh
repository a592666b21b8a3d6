#pragma once

#include "forge/kernels/cuda/ptx/shared.cuh"

#ifndef FORGE_EMULATE
namespace forge::cuda {

// Barriers in shared memory whose phases end when `count` threads have arrived and all bytes that were announced have
// landed. sm_90.
FORGE_DEVICE void mbarrier_init(std::uint64_t* bar, std::uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// What this thread has initialised is there for TMA; for the block's threads, too, behind a __syncthreads.
FORGE_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
FORGE_DEVICE void mbarrier_arrive(std::uint64_t* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
// Arrives and announces bytes.
FORGE_DEVICE void mbarrier_arrive_expect_tx(std::uint64_t* bar, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}
// Waits while the current phase has this parity: the first phase has 0, the next 1, and so on in turn.
FORGE_DEVICE void mbarrier_wait_parity(std::uint64_t* bar, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n"
      "}" ::"r"(shared_address(bar)),
      "r"(parity)
      : "memory");
}

}  // namespace forge::cuda
#endif
