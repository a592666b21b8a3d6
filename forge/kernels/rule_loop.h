#pragma once

#include <algorithm>
#include <cassert>
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

  // Asks for memory, a little with each vector of columns: for a whole loop's at once, the queue of misses would fill.
  FORGE_INLINE static void announce(std::int64_t j, const Pointers& p, std::int64_t ahead) {
    if (ahead == 0) return;
    __builtin_prefetch(p.w + j + ahead);
    for (int k = 0; k < kMoments; ++k) __builtin_prefetch(p.s[k] + j + ahead);
  }

  // A vector of columns each time it is called, until n are done.
  struct Next {
    const RuleWork& work;
    const Pointers& p;
    const Step& step;
    std::int64_t n;  // a multiple of the lanes
    std::int64_t done = 0;

    FORGE_INLINE void operator()() {
      if (done == n) return;
      announce(done, p, work.ahead);
      apply_at(done, p, work.scale, step);
      done += V::kLanes;
    }
  };

  // Columns [from, from + rest), fewer than the lanes: through full registers on the stack, so that the arithmetic is
  // the same.
  static void apply_rest(std::int64_t from, std::size_t rest, const Pointers& p, float scale, const Step& step) {
    std::size_t bytes = rest * sizeof(float);
    float w[V::kLanes] = {}, g[V::kLanes] = {}, s[kMomentArray][V::kLanes] = {}, numbers[kSumArray][V::kLanes];
    float *s_rows[kMomentArray], *numbers_rows[kSumArray];
    std::memcpy(w, p.w + from, bytes);
    std::memcpy(g, p.g + from, bytes);
    for (int k = 0; k < kMoments; ++k) std::memcpy(s_rows[k] = s[k], p.s[k] + from, bytes);
    for (int k = 0; k < Pass::kSums; ++k) numbers_rows[k] = numbers[k];
    apply_at(0, {w, s_rows, g, numbers_rows}, scale, step);
    if (Pass::kWritesWeight) std::memcpy(p.w + from, w, bytes);
    for (int k = 0; k < kWritten; ++k) std::memcpy(p.s[k] + from, s[k], bytes);
    for (int k = 0; k < Pass::kSums; ++k) std::memcpy(p.numbers[k] + from, numbers[k], bytes);
  }

  // A RuleRun.
  static void run(const RuleWork& given) {
    const RuleWork work = given;
    const auto step = *static_cast<const Step*>(work.step);  // a copy: stores cannot alias it
    float *s[kMomentArray], *numbers[kSumArray];
    std::copy_n(work.s, kMoments, s);
    std::copy_n(work.numbers, Pass::kSums, numbers);
    const Pointers p = {work.w, s, work.g, numbers};
    const std::int64_t whole = work.n / V::kLanes * V::kLanes;
    Next next = {work, p, step, whole};
    if constexpr (std::is_void_v<Beside>)
      assert(!work.tile);
    else if (work.tile)
      Beside::run(*work.tile, next);
    while (next.done < whole) next();
    if (whole < work.n) apply_rest(whole, static_cast<std::size_t>(work.n - whole), p, work.scale, step);
  }
};

}  // namespace forge
