#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "forge/base/inline.h"
#include "forge/rules/rule.h"

namespace forge {

// The one loop over elements that every rule runs in, over V = Scalar (base/scalar.h) or the vector registers of an
// instruction set, inside whose target region this is then included: W, S ← Rule(W, S, scale · g), all in fp32. What
// the rule leaves alone is not written.
template <class Rule, class V>
struct RuleLoop {
  using Step = typename Rule::Step;
  static constexpr int kMoments = static_cast<int>(Rule::kMoments.size());
  using Pass = PassOf<Rule>;
  static constexpr int kWritten = Pass::kWritesMoments ? kMoments : 0;
  // C++ has no array of none.
  static constexpr int kMomentArray = std::max(kMoments, 1), kSumArray = std::max(Pass::kSums, 1);

  // n: a multiple of the lanes.
  FORGE_INLINE static void apply(float* w, float* const* s, const float* g, std::int64_t n, float scale,
                                 const Step& step, float* const* numbers) {
    for (std::int64_t j = 0; j < n; j += V::kLanes) {
      V x = V::load(w + j), moments[kMomentArray], given[kSumArray];
      for (int k = 0; k < kMoments; ++k) moments[k] = V::load(s[k] + j);
      update_element<Rule>(x, V(scale) * V::load(g + j), moments, step, given);
      if (Pass::kWritesWeight) x.store(w + j);
      for (int k = 0; k < kWritten; ++k) moments[k].store(s[k] + j);
      for (int k = 0; k < Pass::kSums; ++k) given[k].store(numbers[k] + j);
    }
  }

  // A RuleRun.
  static void run(float* w, float* const* s_rows, const float* g, std::int64_t n, float scale, const void* step_,
                  float* const* numbers_rows) {
    const auto step = *static_cast<const Step*>(step_);  // a copy: stores cannot alias it
    float *s[kMomentArray], *numbers[kSumArray];
    std::copy_n(s_rows, kMoments, s);
    std::copy_n(numbers_rows, Pass::kSums, numbers);
    std::int64_t whole = n / V::kLanes * V::kLanes;
    apply(w, s, g, whole, scale, step, numbers);
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
    apply(w_full, s_rest, g_full, V::kLanes, scale, step, numbers_rest);
    if (Pass::kWritesWeight) std::memcpy(w + whole, w_full, rest);
    for (int k = 0; k < kWritten; ++k) std::memcpy(s[k] + whole, s_full[k], rest);
    for (int k = 0; k < Pass::kSums; ++k) std::memcpy(numbers[k] + whole, numbers_full[k], rest);
  }
};

}  // namespace forge
