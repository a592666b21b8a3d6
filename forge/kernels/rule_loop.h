#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "forge/base/inline.h"
#include "forge/kernels/rule_table.h"
#include "forge/rules/rule.h"

namespace forge {

// The one loop over elements that every rule runs in, over V = Scalar (base/scalar.h) or the vector registers of an
// instruction set, inside whose target region this is then included: W, S ← Rule(W, S, scale · g), all in fp32. What
// the rule leaves alone is not written. Beside: what may run at the same time (cpu/multiply_tile.h), or void.
template <class Rule, class V, class Beside = void>
struct RuleLoop {
  using Step = typename Rule::Step;
  static constexpr int kMoments = static_cast<int>(Rule::kMoments.size());
  using Pass = PassOf<Rule>;
  static constexpr int kWritten = Pass::kWritesMoments ? kMoments : 0;
  // C++ has no array of none.
  static constexpr int kMomentArray = std::max(kMoments, 1), kSumArray = std::max(Pass::kSums, 1);

  struct Pointers {
    float *w, *const *s;
    const float* g;
    float* const* numbers;
  };

  FORGE_INLINE static void apply_at(std::int64_t j, const Pointers& p, float scale, const Step& step) {
    V x = V::load(p.w + j), moments[kMomentArray], given[kSumArray];
    for (int k = 0; k < kMoments; ++k) moments[k] = V::load(p.s[k] + j);
    update_element<Rule>(x, V(scale) * V::load(p.g + j), moments, step, given);
    if (Pass::kWritesWeight) x.store(p.w + j);
    for (int k = 0; k < kWritten; ++k) moments[k].store(p.s[k] + j);
    for (int k = 0; k < Pass::kSums; ++k) given[k].store(p.numbers[k] + j);
  }

  // n: a multiple of the lanes.
  FORGE_INLINE static void apply(float* w, float* const* s, const float* g, std::int64_t n, float scale,
                                 const Step& step, float* const* numbers) {
    for (std::int64_t j = 0; j < n; j += V::kLanes) apply_at(j, {w, s, g, numbers}, scale, step);
  }

  // Asks for memory, a little with each vector of columns: for a whole loop's at once, the queue of misses would fill.
  FORGE_INLINE static void announce(std::int64_t j, const Pointers& p, std::int64_t ahead) {
    constexpr int kWrite = 1;
    __builtin_prefetch(p.w + j + ahead, kWrite);
    for (int k = 0; k < kMoments; ++k) __builtin_prefetch(p.s[k] + j + ahead, kWrite);
  }

  // Runs work.tile, and of the first n columns, a multiple of the lanes, as many as there is time for: how many.
  FORGE_INLINE static std::int64_t run_beside(const RuleWork& work, const Pointers& p, std::int64_t n,
                                              const Step& step) {
    std::int64_t j = 0;
    Beside::run(
        *work.tile, [&]() __attribute__((always_inline)) {
          if (j == n) return;
          announce(j, p, work.ahead);
          apply_at(j, p, work.scale, step);
          j += V::kLanes;
        });
    return j;
  }

  // A RuleRun.
  static void run(const RuleWork& given) {
    const RuleWork work = given;
    const auto step = *static_cast<const Step*>(work.step);  // a copy: stores cannot alias it
    float *s[kMomentArray], *numbers[kSumArray];
    std::copy_n(work.s, kMoments, s);
    std::copy_n(work.numbers, Pass::kSums, numbers);
    float* w = work.w;
    const float* g = work.g;
    std::int64_t n = work.n, whole = n / V::kLanes * V::kLanes, done = 0;
    if constexpr (!std::is_void_v<Beside>)
      if (work.tile) done = run_beside(work, {w, s, g, numbers}, whole, step);
    for (; done < whole; done += V::kLanes) {
      announce(done, {w, s, g, numbers}, work.ahead);
      apply_at(done, {w, s, g, numbers}, work.scale, step);
    }
    if (whole == n) return;
    // The rest through full registers on the stack, so that the arithmetic is the same.
    std::size_t rest = static_cast<std::size_t>(n - whole) * sizeof(float);
    float w_full[V::kLanes] = {}, g_full[V::kLanes] = {}, s_full[kMomentArray][V::kLanes] = {},
          numbers_full[kSumArray][V::kLanes];
    float *s_rest[kMomentArray], *numbers_rest[kSumArray];
    std::memcpy(w_full, w + whole, rest);
    std::memcpy(g_full, g + whole, rest);
    for (int k = 0; k < kMoments; ++k) std::memcpy(s_rest[k] = s_full[k], s[k] + whole, rest);
    for (int k = 0; k < Pass::kSums; ++k) numbers_rest[k] = numbers_full[k];
    apply(w_full, s_rest, g_full, V::kLanes, work.scale, step, numbers_rest);
    if (Pass::kWritesWeight) std::memcpy(w + whole, w_full, rest);
    for (int k = 0; k < kWritten; ++k) std::memcpy(s[k] + whole, s_full[k], rest);
    for (int k = 0; k < Pass::kSums; ++k) std::memcpy(numbers[k] + whole, numbers_full[k], rest);
  }
};

}  // namespace forge
