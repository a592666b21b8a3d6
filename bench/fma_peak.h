#pragma once

// A clock, a median, and the peak rate of fused multiply-adds on this machine at this moment.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "forge/base/executor.h"
#include "forge/kernels/target.h"

using BenchClock = std::chrono::steady_clock;

inline double milliseconds_since(BenchClock::time_point start) {
  return std::chrono::duration<double, std::milli>(BenchClock::now() - start).count();
}

inline double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

// 12 independent chains: 2 ports × 4 cycles of latency need 8.
constexpr int kChains = 12;
constexpr std::int64_t kFmaLoops = 4'000'000;

#if defined(__x86_64__)
__attribute__((target("avx2,fma"), noinline)) inline float spin_avx2() {
  __m256 sum[kChains], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (std::int64_t r = 0; r < kFmaLoops; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm256_fmadd_ps(sum[i], x, y);
  float total = 0;
  for (int i = 0; i < kChains; ++i) total += _mm256_cvtss_f32(sum[i]);
  return total;
}

__attribute__((target("avx512f"), noinline)) inline float spin_avx512() {
  __m512 sum[kChains], x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::int64_t r = 0; r < kFmaLoops; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_fmadd_ps(sum[i], x, y);
  float total = 0;
  for (int i = 0; i < kChains; ++i) total += _mm512_cvtss_f32(sum[i]);
  return total;
}

__attribute__((target("avx512f,avx512bf16"), noinline)) inline float spin_pairs() {
  __m512 sum[kChains];
  __m512bh x = (__m512bh)_mm512_set1_epi16(0x3F00), y = (__m512bh)_mm512_set1_epi16(0x3E80);  // 1/2, 1/4
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::int64_t r = 0; r < kFmaLoops; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], x, y);
  float total = 0;
  for (int i = 0; i < kChains; ++i) total += _mm512_cvtss_f32(sum[i]);
  return total;
}
#endif

// GFLOP/s of all workers together; 0 where this program has no loop for the instruction set.
// bf16: of numbers that an instruction of the machine may take two at a time.
inline double fma_gflops(forge::Executor& executor, bool bf16 = false) {
  int lanes = 0;
  float (*spin)() = nullptr;
#if defined(__x86_64__)
  if (forge::best_target() == forge::Target::avx2) lanes = 8, spin = spin_avx2;
  if (forge::best_target() == forge::Target::avx512) lanes = 16, spin = spin_avx512;
  if (spin == spin_avx512 && bf16 && __builtin_cpu_supports("avx512bf16")) lanes = 32, spin = spin_pairs;
#endif
  if (!spin) return 0;
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    auto start = BenchClock::now();
    executor.run([&](int) {
      volatile float sink = spin();
      (void)sink;
    });
    times.push_back(milliseconds_since(start));
  }
  return 2.0 * lanes * kChains * kFmaLoops * executor.workers() / median(times) / 1e6;
}
