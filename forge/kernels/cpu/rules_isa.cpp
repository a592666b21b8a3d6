// Rules over vector registers: numbers in fp32, whatever they are stored as. No matrix product, no format.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "forge/base/error.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"

HWY_BEFORE_NAMESPACE();
#include "forge/kernels/cpu/lanes.h"
#include "forge/rules/list.h"

namespace forge::cpu {
namespace HWY_NAMESPACE {
namespace {

template <class Rule>
struct RuleLoop {
  using Step = typename Rule::Step;
  static constexpr int kMoments = static_cast<int>(Rule::kMoments.size());
  static constexpr int kSums = kRuleInfo<Rule>.sums;
  static constexpr bool kWritesWeight = kRuleInfo<Rule>.writes_weight, kWritesMoments = kRuleInfo<Rule>.writes_moments;
  // C++ has no array of none.
  static constexpr int kMomentArray = std::max(kMoments, 1), kSumArray = std::max(kSums, 1);

  // n: a multiple of the lanes.
  static HWY_INLINE void apply(float* w, float* const* s, const float* g, std::int64_t n, float scale, const Step& step,
                               float* const* numbers) {
    for (std::int64_t j = 0; j < n; j += Lanes::kLanes) {
      Lanes x = Lanes::load(w + j), moments[kMomentArray], given[kSumArray];
      for (int k = 0; k < kMoments; ++k) moments[k] = Lanes::load(s[k] + j);
      update_element<Rule>(x, Lanes(scale) * Lanes::load(g + j), moments, step, given);
      if (kWritesWeight) x.store(w + j);
      for (int k = 0; k < kMoments && kWritesMoments; ++k) moments[k].store(s[k] + j);
      for (int k = 0; k < kSums; ++k) given[k].store(numbers[k] + j);
    }
  }

  static void run(float* w, float* const* s_rows, const float* g, std::int64_t n, float scale, const void* step_,
                  float* const* numbers_rows) {
    const auto step = *static_cast<const Step*>(step_);  // a copy: stores cannot alias it
    float *s[kMomentArray], *numbers[kSumArray];
    std::copy_n(s_rows, kMoments, s);
    std::copy_n(numbers_rows, kSums, numbers);
    std::int64_t whole = n / Lanes::kLanes * Lanes::kLanes;
    apply(w, s, g, whole, scale, step, numbers);
    if (whole == n) return;
    // The rest through full registers on the stack, so that the arithmetic is the same.
    std::size_t rest = static_cast<std::size_t>(n - whole) * sizeof(float);
    float w_full[Lanes::kLanes] = {}, g_full[Lanes::kLanes] = {}, s_full[kMomentArray][Lanes::kLanes] = {},
          numbers_full[kSumArray][Lanes::kLanes];
    float *s_rest[kMomentArray], *numbers_rest[kSumArray];
    std::memcpy(w_full, w + whole, rest);
    std::memcpy(g_full, g + whole, rest);
    for (int k = 0; k < kMoments; ++k) std::memcpy(s_rest[k] = s_full[k], s[k] + whole, rest);
    for (int k = 0; k < kSums; ++k) numbers_rest[k] = numbers_full[k];
    apply(w_full, s_rest, g_full, Lanes::kLanes, scale, step, numbers_rest);
    if (kWritesWeight) std::memcpy(w + whole, w_full, rest);
    for (int k = 0; k < kMoments && kWritesMoments; ++k) std::memcpy(s[k] + whole, s_full[k], rest);
    for (int k = 0; k < kSums; ++k) std::memcpy(numbers[k] + whole, numbers_full[k], rest);
  }
};

RuleRun find_rule(const RuleInfo& rule) {
  RuleRun found = nullptr;
  RuleList::for_each([&]<class Rule>() {
    if (rule.id == kRuleInfo<Rule>.id) found = RuleLoop<Rule>::run;
  });
  return found;
}

void scaled(const float* g, std::int64_t n, float scale, float* to) {
  std::int64_t j = 0;
  for (; j + Lanes::kLanes <= n; j += Lanes::kLanes) (Lanes(scale) * Lanes::load(g + j)).store(to + j);
  for (; j < n; ++j) to[j] = scale * g[j];
}

}  // namespace

constexpr RuleHalf kRuleHalf = {find_rule, scaled};

}  // namespace HWY_NAMESPACE

extern const RuleHalf FORGE_ISA(rules);
const RuleHalf FORGE_ISA(rules) = HWY_NAMESPACE::kRuleHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
