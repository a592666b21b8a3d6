#pragma once

#include "forge/kernels/cuda/ptx/shared.cuh"

#ifndef FORGE_EMULATE
namespace forge::cuda {

// Four 8 × 8 matrices of 16-bit numbers from shared memory, transposed on their way: lane 8 i + r has the address of
// row r of matrix i, 16 bytes on a multiple of 16; of its transpose each lane gets row lane / 4, columns 2 (lane % 4)
// and the one behind it, in result[i]. sm_75.
FORGE_DEVICE void ldmatrix_x4_trans(std::uint32_t* result, const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(shared_address(row))
               : "memory");
}

// D += A B, (16 × 16) · (16 × 8), a warp together. Of A a lane has rows lane / 4 and 8 below, columns 2 (lane % 4) and
// the one behind it, then 8 further: {above left, below left, above right, below right}; of B columns lane / 4 and
// those rows; of D {above, above, below, below} in two columns. sm_80.
FORGE_DEVICE void mma_bf16(float* d, const std::uint32_t* a, const std::uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FORGE_DEVICE void mma_fp16(float* d, const std::uint32_t* a, const std::uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace forge::cuda
#endif
