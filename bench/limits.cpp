// What no fused step on this machine can beat, measured now: the time to stream W and its moments through the rule
// with an empty gradient, and the peak rate of multiply-adds of its dtype. Prints one JSON object.
//   bench_limits OUT IN fp32|bf16 THREADS
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "bench/fma_peak.h"
#include "bench/pages.h"
#include "forge/base/openmp_executor.h"
#include "forge/kernels/update.h"

namespace {

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
    auto start = BenchClock::now();
    forge::update(matrix(0), moments, nothing, forge::OptimizingOf<forge::AdamWOptions>::prepare({}, i + 1),
                  {executor, workspace});
    times.push_back(milliseconds_since(start));
  }
  return median(times);
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
              stream_ms(std::atoll(argv[1]), std::atoll(argv[2]), dtype, executor),
              fma_gflops(executor, dtype == forge::DType::bf16), forge::name_of(forge::best_target()));
}
