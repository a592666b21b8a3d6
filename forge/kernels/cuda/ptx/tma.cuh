#pragma once

#include "forge/kernels/cuda/ptx/shared.cuh"

#ifndef FORGE_EMULATE
#include <cuda.h>
#include <cudaTypedefs.h>

namespace forge::cuda {

// A matrix of 16-bit numbers as TMA loads it: boxes of (box_rows, box_cols), zeros where they reach beyond it, their
// 16-byte pieces exchanged in patterns of 128 bytes. In a kernel's parameter, where hardware reads it.
using TensorMap = CUtensorMap;

// The driver's function by the runtime's help (CUDA 12.5), so that nothing links the driver.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  constexpr unsigned kSinceCuda = 12000;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult query{};
  check_launch(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSinceCuda, cudaEnableDefault, &query));
  check(found != nullptr, "CUDA: this driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

// On the host. data and stride_bytes are multiples of 16, neither rows nor cols 0. Throws Error where the driver
// refuses.
inline TensorMap encode_tensor_map(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride_bytes,
                                   std::uint32_t box_rows, std::uint32_t box_cols) {
  static const auto encode = tensor_map_encoder();
  const cuuint64_t extent[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[] = {static_cast<cuuint64_t>(stride_bytes)};
  const cuuint32_t box[] = {box_cols, box_rows}, every[] = {1, 1};
  TensorMap map;
  CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), extent, stride, box,
                           every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS, "CUDA refuses a tensor map of (", rows, ", ", cols, "), rows ", stride_bytes,
        " bytes apart: error ", static_cast<int>(result));
  return map;
}

// The box from (row, col) on to shared memory, on a multiple of 1024; its bytes, those of zeros with them, arrive on
// the barrier. sm_90.
FORGE_DEVICE void tma_load_2d(void* dst, const TensorMap& map, std::uint64_t* bar, int col, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(dst)),
      "l"(&map), "r"(shared_address(bar)), "r"(col), "r"(row)
      : "memory");
}

}  // namespace forge::cuda
#endif
