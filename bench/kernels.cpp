// The kernels alone, without torch: one 4096 × 4096 AdamW weight.
//   bench_kernels --benchmark_filter=update
#include <benchmark/benchmark.h>

#include <vector>

#include "bench/pages.h"
#include "forge/base/openmp_executor.h"
#include "forge/kernels/materialize.h"
#include "forge/kernels/norm.h"
#include "forge/kernels/update.h"

namespace {

constexpr std::int64_t kSize = 4096;

struct Weight {
  explicit Weight(std::int64_t tokens)
      : dY(huge_pages(tokens * kSize * 4)), X(huge_pages(tokens * kSize * 4)), tokens(tokens) {
    for (Pages& p : storage) p = huge_pages(kSize * kSize * 4);
    std::fill_n(static_cast<float*>(dY.get()), tokens * kSize, 1e-3f);
    std::fill_n(static_cast<float*>(X.get()), tokens * kSize, 1.0f);
    terms = {forge::Outer{{dY.get(), forge::DType::f32, tokens, kSize, kSize},
                          {X.get(), forge::DType::f32, tokens, kSize, kSize}}};
    G = {.out = kSize, .in = kSize, .terms = terms};
    workspace.resize(forge::workspace_bytes(G, executor.workers()));
  }

  forge::Matrix matrix(int k) const { return {storage[k].get(), forge::DType::f32, kSize, kSize, kSize}; }
  forge::Context context() { return {executor, workspace}; }

  Pages storage[3], dY, X;
  std::int64_t tokens;
  std::vector<forge::Term> terms;
  forge::Expression G;
  forge::OpenMpExecutor executor;
  std::vector<std::byte> workspace;
};

template <class Body>
void run(benchmark::State& state, Body body) {
  Weight weight(state.range(0));
  for (auto _ : state) body(weight);
  state.counters["FLOP/s"] =
      benchmark::Counter(2.0 * state.range(0) * kSize * kSize, benchmark::Counter::kIsIterationInvariantRate);
}

void update(benchmark::State& state) {
  run(state, [step = 0](Weight& w) mutable {
    forge::Stored moments[] = {w.matrix(1), w.matrix(2)};
    forge::update(w.matrix(0), moments, w.G, forge::OptimizingOf<forge::AdamWOptions>::prepare({}, ++step),
                  w.context());
  });
}

void materialize(benchmark::State& state) {
  run(state, [](Weight& w) { forge::materialize(w.matrix(0), w.G, w.context()); });
}

void sum_squares(benchmark::State& state) {
  run(state, [](Weight& w) { benchmark::DoNotOptimize(forge::sum_squares(w.G, w.context())); });
}

void tokens(benchmark::internal::Benchmark* b) {
  for (int T : {8, 32, 64, 128, 256, 512, 2048}) b->Arg(T);
  b->Unit(benchmark::kMillisecond)->UseRealTime();
}

BENCHMARK(update)->Apply(tokens);
BENCHMARK(materialize)->Apply(tokens);
BENCHMARK(sum_squares)->Apply(tokens);

}  // namespace

BENCHMARK_MAIN();
