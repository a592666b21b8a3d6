// What surrounds a call: the caller's floating-point mode, the workspace's address, the heap, the memory beside.
#include <gtest/gtest.h>

#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <new>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/float_environment.h"
#include "forge/kernels/testing/harness.h"

namespace {

std::atomic<std::int64_t> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment = alignof(std::max_align_t)) {
  ++allocations;
  if (void* p = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment)) return p;
  throw std::bad_alloc();
}

}  // namespace

// The test program's own allocator: it counts. Not inlined: GCC would see memory from new go to free.
[[gnu::noinline]] void* operator new(std::size_t bytes) { return counted(bytes); }
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace forge {
namespace {

using namespace forge::testing;

constexpr Shape kShape = {37, 515};

// The results of all three operations.
struct Results {
  Weight weight;
  Buffer D32{kShape.out, kShape.in, DType::f32}, D16{kShape.out, kShape.in, DType::bf16};
  double norm = 0;

  void run(const Expression& G, const RuleStep& rule, const Context& context) {
    update(weight.W.view(), weight.moments(), G, rule, context);
    materialize(D32.view(), G, context);
    materialize(D16.view(), G, context);
    norm = sum_squares(G, context);
  }
};

::testing::AssertionResult same_results(const Results& a, const Results& b) {
  if (a.D32.bytes() != b.D32.bytes() || a.D16.bytes() != b.D16.bytes())
    return ::testing::AssertionFailure() << "the gradients differ";
  if (!same_number(a.norm, b.norm)) return ::testing::AssertionFailure() << "the norms differ";
  return same_bits(a.weight, b.weight);
}

Results fresh(Format format) {
  Random random(61);
  return {Weight(kShape, {format, format}, kRuleInfo<rules::AdamW>, [&] { return random.wild(); })};
}

#if defined(__x86_64__)

// MXCSR: flush to zero, denormals are zero, and three ways to round that are not to nearest.
TEST(Environment, TheCallersFloatModeNeitherCountsNorChanges) {
  Random random(62);
  RuleStep rule = step_of<rules::AdamW>({.lr = 1e-2}, 2);
  for (const char* name : {"everything", "dense", "64 tokens of bf16", "rows"})
    for (const GradientSpec& spec : gradient_specs()) {
      if (spec.name != name) continue;
      Gradient gradient(kShape, spec, random,
                        [&] { return random.below(3) ? random.log_uniform(-22, -15) : random.wild(); });
      Expression G = gradient.expression();
      for (Target target : available_targets())
        for (const NamedExecutor& e : executors()) {
          Workspace workspace(workspace_bytes(G, e.executor.workers(), target));
          Context context = {e.executor, workspace.span(), target};
          Results expected = fresh(Format::fp32);
          expected.run(G, rule, context);
          for (unsigned mode : {0x8000u, 0x0040u, 0x8040u, 0x2000u, 0x4000u, 0x6000u, 0xE040u}) {
            SCOPED_TRACE(::testing::Message()
                         << name << ", " << name_of(target) << ", " << e.name << ", MXCSR " << std::hex << mode);
            Results results = fresh(Format::fp32);
            unsigned saved = _mm_getcsr(), wanted = 0x1F80 | mode;
            _mm_setcsr(wanted);
            results.run(G, rule, context);
            unsigned after = _mm_getcsr();
            _mm_setcsr(saved);
            EXPECT_EQ(after & ~0x3Fu, wanted) << "the caller's mode is gone";
            EXPECT_TRUE(same_results(results, expected));
          }
        }
    }
}

TEST(Environment, DenormalsOfFp16AreKeptInAnyMode) {
  Buffer X(1, 1023, DType::f16), dY = Buffer(1, 1, DType::f32).fill([] { return 1.f; });
  X.fill([i = 0]() mutable { return 0x1p-24f * static_cast<float>(++i); });
  Term term = Outer{dY.view(), X.view()};
  for (Target target : available_targets()) {
    unsigned saved = _mm_getcsr();
    _mm_setcsr(saved | 0x8040);
    Buffer D = run_materialize({executors()[1].executor, target}, {1, 1023, std::span(&term, 1)});
    _mm_setcsr(saved);
    EXPECT_TRUE(same_numbers(D.numbers(), X.numbers())) << name_of(target);
  }
}

TEST(Environment, TheFlushedModeWouldBeSeen) {
  // The data above has power: with denormals flushed, the chain written in this test gives other bits.
  volatile float tiny = 1e-30f;
  unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);
  float flushed = tiny * 1e-10f;
  _mm_setcsr(saved);
  EXPECT_EQ(flushed, 0);
  EXPECT_NE(tiny * 1e-10f, 0);
  _mm_setcsr(saved | 0x8040);
  {
    FloatEnvironment ieee;
    flushed = tiny * 1e-10f;
  }
  unsigned after = _mm_getcsr();
  _mm_setcsr(saved);
  EXPECT_NE(flushed, 0);
  EXPECT_EQ(after & 0x8040, 0x8040u);
}

#endif

TEST(Environment, TheWorkspaceMayBeginAnywhereAndSuffices) {
  Random random(63);
  RuleStep rule = step_of<rules::AdamW>({.lr = 1e-2}, 2);
  for (const GradientSpec& spec : gradient_specs()) {
    Gradient gradient(kShape, spec, random);
    Expression G = gradient.expression();
    for (Target target : available_targets())
      for (const NamedExecutor& e : executors()) {
        std::size_t bytes = workspace_bytes(G, e.executor.workers(), target);
        Workspace aligned(bytes);
        Results expected = fresh(Format::bf16);
        expected.run(G, rule, {e.executor, aligned.span(), target});
        for (std::size_t offset : {1, 4, 31, 60, 63}) {
          SCOPED_TRACE(::testing::Message()
                       << spec.name << ", " << name_of(target) << ", " << e.name << ", offset " << offset);
          Workspace workspace(bytes, offset);
          Results results = fresh(Format::bf16);
          results.run(G, rule, {e.executor, workspace.span(), target});
          EXPECT_TRUE(workspace.canaries_live());
          EXPECT_TRUE(same_results(results, expected));
        }
      }
  }
}

TEST(Environment, AWorkspacesContentDoesNotMatter) {
  Random random(64);
  RuleStep rule = step_of<rules::AdamW>({}, 2);
  Gradient gradient(kShape, gradient_specs().back(), random);
  for (Target target : available_targets()) {
    std::vector<std::byte> workspace(workspace_bytes(gradient.expression(), 1, target) + 64);
    SerialExecutor serial;
    Results zeros = fresh(Format::fp32), nans = fresh(Format::fp32);
    zeros.run(gradient.expression(), rule, {serial, workspace, target});
    std::fill(workspace.begin(), workspace.end(), std::byte{0xFF});
    nans.run(gradient.expression(), rule, {serial, workspace, target});
    EXPECT_TRUE(same_results(zeros, nans)) << name_of(target);
  }
}

// Contract 7 for the core: no gradient is stored, for nothing is.
TEST(Environment, KernelsAllocateNothing) {
  Random random(65);
  RuleStep rule = step_of<rules::AdamW>({}, 2);
  for (const GradientSpec& spec : gradient_specs()) {
    Gradient gradient(kShape, spec, random);
    Expression G = gradient.expression();
    for (Target target : available_targets())
      for (const NamedExecutor& e : executors()) {
        Workspace workspace(workspace_bytes(G, e.executor.workers(), target));
        Context context = {e.executor, workspace.span(), target};
        Results results = fresh(Format::bf16);
        std::vector<Stored> S = results.weight.moments();
        Stored W = results.weight.W.view();
        Matrix D = results.D32.view();
        std::int64_t before = allocations;
        update(W, S, G, rule, context);
        materialize(D, G, context);
        sum_squares(G, context);
        EXPECT_EQ(allocations - before, 0) << spec.name << ", " << name_of(target) << ", " << e.name;
      }
  }
  std::int64_t before = allocations;
  ::operator delete(::operator new(1));  // called by name: the compiler may not leave it out
  EXPECT_EQ(allocations - before, 1) << "the counter counts";
}

}  // namespace
}  // namespace forge
