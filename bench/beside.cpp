// What of a row operation a processor does beside a product, and what it does instead: how many multiply-adds of 64
// bytes each operation of 64 bytes takes the time of, put among them, one to every 16, 4 or 1 of them. Prints one JSON
// object: 0 is for nothing, 1 as much as a multiply-add. AVX-512 only.
//   bench_beside
#include <algorithm>
#include <cstdio>

#include "bench/fma_peak.h"

#if defined(__x86_64__)
namespace {

constexpr int kSums = 16, kOthers = 4;
constexpr std::int64_t kSteps = 20'000;
alignas(64) float memory[16];

// Nothing but its instructions: the compiler has to leave each where it is.
struct Registers {
  __m512 sum[kSums], x[kOthers];
};

#define FORGE_OPERATION(name, instruction)                                                    \
  struct name {                                                                               \
    static constexpr const char* kName = #name;                                               \
    __attribute__((target("avx512f,avx512bw"), always_inline)) static void apply(__m512& x) { \
      __asm__ volatile(instruction : "+v"(x) : "m"(memory) : "memory");                       \
    }                                                                                         \
  };
FORGE_OPERATION(integer_addition, "vpaddd %0, %0, %0")
FORGE_OPERATION(shift, "vpsrlq $1, %0, %0")
FORGE_OPERATION(shuffle, "vpunpcklwd %0, %0, %0")
FORGE_OPERATION(addition, "vaddps %0, %0, %0")
FORGE_OPERATION(multiplication, "vmulps %0, %0, %0")
FORGE_OPERATION(integer_multiplication, "vpmuludq %0, %0, %0")
FORGE_OPERATION(quotient, "vdivps %0, %0, %0")
FORGE_OPERATION(root, "vsqrtps %0, %0")
FORGE_OPERATION(load, "vmovups %1, %0")
FORGE_OPERATION(store, "vmovups %0, %1")
#undef FORGE_OPERATION

// Milliseconds of kSteps steps of kSums multiply-adds, kMany operations among them.
template <class Operation, int kMany>
__attribute__((target("avx512f,avx512bw"), noinline)) double run() {
  Registers r = {};
  const __m512 a = _mm512_set1_ps(0.5f);
  auto start = BenchClock::now();
  for (std::int64_t step = 0; step < kSteps; ++step)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(r.sum[i]) : "v"(a));
      if (i % (kSums / kMany) == 0) Operation::apply(r.x[i / (kSums / kMany) % kOthers]);
    }
  return milliseconds_since(start);
}

struct Nothing {
  static void apply(__m512&) {}
};

template <class Operation, int kMany>
double multiply_adds_each() {
  double alone = 1e9, with = 1e9;
  for (int i = 0; i < 50; ++i) {
    alone = std::min(alone, run<Nothing, 1>());
    with = std::min(with, run<Operation, kMany>());
  }
  return (with / alone - 1) * kSums / kMany;
}

template <class... Operation>
void print() {
  const char* before = "{";
  ((std::printf("%s\"%s\": {\"1\": %.2f, \"4\": %.2f, \"16\": %.2f}", before, Operation::kName,
                multiply_adds_each<Operation, 1>(), multiply_adds_each<Operation, 4>(),
                multiply_adds_each<Operation, 16>()),
    before = ",\n "),
   ...);
  std::printf("}\n");
}

}  // namespace
#endif

int main() {
#if defined(__x86_64__)
  if (forge::best_target() == forge::Target::avx512) {
    print<integer_addition, shift, shuffle, addition, multiplication, integer_multiplication, quotient, root, load,
          store>();
    return 0;
  }
#endif
  std::fprintf(stderr, "bench_beside: for AVX-512, which this machine has not\n");
  return 1;
}
