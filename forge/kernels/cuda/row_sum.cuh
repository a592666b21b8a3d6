#pragma once

#include <bit>
#include <cstdint>

#include "forge/kernels/cuda/columns.cuh"
#include "forge/kernels/norm_lanes.h"

namespace forge::cuda {

constexpr int kWarpColumns = 32 * kThreadColumns;

FORGE_DEVICE double shuffle_xor(double x, int lanes) {
  auto bits = std::bit_cast<std::uint64_t>(x);
  std::uint64_t low = __shfl_xor_sync(~0u, static_cast<std::uint32_t>(bits), lanes);
  std::uint64_t high = __shfl_xor_sync(~0u, static_cast<std::uint32_t>(bits >> 32), lanes);
  return std::bit_cast<double>(high << 32 | low);
}

// The sum of the squares of a row's numbers in the order of norm_lanes.h, by a warp that goes from left to right, four
// columns a thread and so 128 at a time. All lanes of the warp have to come to each function together. Four of the 16
// lanes of that order are a thread's; the 8 threads that have the same ones add the same.
class RowSum {
 public:
  // x: the thread's four, of which the first `valid` are the row's.
  FORGE_DEVICE void add(const float* x, int valid) {
    constexpr int kOwners = kNormLanes / kThreadColumns;
    std::uint32_t own[kThreadColumns];
    Columns::each([&](int i) { own[i] = i < valid ? std::bit_cast<std::uint32_t>(x[i]) : 0; });
    FORGE_UNROLL
    for (int from = 0; from < 32; from += kOwners)
      Columns::each([&](int i) {
        int thread = from + static_cast<int>(threadIdx.x) % kOwners;
        double number = std::bit_cast<float>(__shfl_sync(~0u, own[i], thread));
        lanes_[i] += number * number;
      });
  }
  FORGE_DEVICE double total() const {
    double sum[kThreadColumns];
    Columns::each([&](int i) { sum[i] = lanes_[i]; });
    FORGE_UNROLL
    for (int threads = kNormLanes / kThreadColumns / 2; threads > 0; threads /= 2)
      Columns::each([&](int i) { sum[i] += shuffle_xor(sum[i], threads); });
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }

 private:
  double lanes_[kThreadColumns] = {};
};

}  // namespace forge::cuda
