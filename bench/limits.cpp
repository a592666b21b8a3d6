// What no fused step on this machine can beat, measured now: the time to stream W and its moments through the rule
// with an empty gradient, and the peak rate of fused multiply-adds. Prints one JSON object.
//   bench_limits OUT IN fp32|bf16 THREADS
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bench/pages.h"
#include "forge/base/openmp_executor.h"
#include "forge/kernels/update.h"

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

constexpr int kRepetitions = 9;

double stream_ms(std::int64_t out, std::int64_t in, forge::DType dtype, forge::Executor& executor) {
  std::size_t bytes = static_cast<std::size_t>(out * in) * forge::size_of(dtype);
  Pages storage[3] = {huge_pages(bytes), huge_pages(bytes), huge_pages(bytes)};
  auto matrix = [&](int k) { return forge::Matrix{storage[k].get(), dtype, out, in, in}; };
  forge::Expression nothing = {.out = out, .in = in, .terms = {}, .scale = 1};
  std::vector<std::byte> workspace(forge::workspace_bytes(nothing, executor.workers()));
  forge::Stored moments[2] = {matrix(1), matrix(2)};
  std::vector<double> times;
  for (int i = 0; i < kRepetitions; ++i) {
    auto start = Clock::now();
    forge::update(matrix(0), moments, nothing, forge::OptimizingOf<forge::AdamWOptions>::prepare({}, i + 1),
                  {executor, workspace});
    times.push_back(milliseconds_since(start));
  }
  return median(times);
}

// 12 independent chains: 2 ports × 4 cycles of latency need 8.
constexpr int kChains = 12;
constexpr std::int64_t kFmaLoops = 4'000'000;

#if defined(__x86_64__)
__attribute__((target("avx2,fma"), noinline)) float spin_avx2() {
  __m256 sum[kChains], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm256_set1_ps(static_cast<float>(i));
  for (std::int64_t r = 0; r < kFmaLoops; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm256_fmadd_ps(sum[i], x, y);
  float total = 0;
  for (int i = 0; i < kChains; ++i) total += _mm256_cvtss_f32(sum[i]);
  return total;
}

__attribute__((target("avx512f"), noinline)) float spin_avx512() {
  __m512 sum[kChains], x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
  for (int i = 0; i < kChains; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::int64_t r = 0; r < kFmaLoops; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_fmadd_ps(sum[i], x, y);
  float total = 0;
  for (int i = 0; i < kChains; ++i) total += _mm512_cvtss_f32(sum[i]);
  return total;
}
#endif

// GFLOP/s of all workers together; 0 where this program has no loop for the instruction set.
double fma_gflops(forge::Executor& executor) {
  int lanes = 0;
  float (*spin)() = nullptr;
#if defined(__x86_64__)
  if (forge::best_target() == forge::Target::avx2) lanes = 8, spin = spin_avx2;
  if (forge::best_target() == forge::Target::avx512) lanes = 16, spin = spin_avx512;
#endif
  if (!spin) return 0;
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    auto start = Clock::now();
    executor.run([&](int) {
      volatile float sink = spin();
      (void)sink;
    });
    times.push_back(milliseconds_since(start));
  }
  return 2.0 * lanes * kChains * kFmaLoops * executor.workers() / median(times) / 1e6;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: bench_limits OUT IN fp32|bf16 THREADS\n");
    return 2;
  }
  forge::DType dtype = std::strcmp(argv[3], "bf16") == 0 ? forge::DType::bf16 : forge::DType::f32;
  forge::OpenMpExecutor executor(std::atoi(argv[4]));
  std::printf("{\"stream_ms\": %.4f, \"fma_gflops\": %.2f, \"target\": \"%s\"}\n",
              stream_ms(std::atoll(argv[1]), std::atoll(argv[2]), dtype, executor), fma_gflops(executor),
              forge::name_of(forge::best_target()));
}
