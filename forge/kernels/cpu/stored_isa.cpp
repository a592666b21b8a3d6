// Rules over numbers as they are stored: decoded, updated and encoded in one loop.
#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "forge/base/error.h"
#include "forge/base/hash.h"
#include "forge/base/scalar.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"

HWY_BEFORE_NAMESPACE();
#include "forge/formats/list.h"
#include "forge/kernels/cpu/lanes.h"
#include "forge/rules/list.h"

// A lambda in a template forgets the region that it is written in.
#define FORGE_LAMBDA HWY_ATTR __attribute__((always_inline))

namespace forge::cpu {
namespace HWY_NAMESPACE {
namespace {

// The loop of a rule over a weight and moments in two formats: a block of columns at a time, in registers from memory
// to memory. The bits are those of a codec's loop, RuleLoop and the codec's other loop.
template <class Rule, Format kWeight, Format kState>
class StoredLoop {
 public:
  // A StoredRun.
  static void run(const StoredWork& given) {
    // Copies: stores cannot alias them.
    const auto step = *static_cast<const Step*>(given.step);
    Segment moments[kMomentArray];
    std::copy_n(given.s, kMoments, moments);
    StoredWork work = given;
    work.s = moments;
    for (std::int64_t j = 0; j < work.n; j += kBlockColumns) update_block(work, step, j);
  }

 private:
  static constexpr int kMoments = static_cast<int>(Rule::kMoments.size());
  static constexpr int kMomentArray = std::max(kMoments, 1);  // C++ has no array of none
  static constexpr int kVectors = static_cast<int>(kBlockColumns) / Lanes::kLanes;
  static_assert(kBlockColumns % LanePair::kLanes == 0);
  static_assert(PassOf<Rule>::kSums == 0 && PassOf<Rule>::kWritesWeight && PassOf<Rule>::kWritesMoments);
  static_assert(std::ranges::all_of(Rule::kMoments, [](const Moment& m) { return m.extent == Extent::element; }));

  using Step = typename Rule::Step;
  using Weight = FormatOf<kWeight, Sign::any>;
  template <int k>
  using State = FormatOf<kState, Rule::kMoments[k].sign>;

  // Calls f.operator()<k>() for each moment.
  template <class F>
  static HWY_INLINE void each_moment(F&& f) {
    [&]<int... k>(std::integer_sequence<int, k...>) FORGE_LAMBDA { (f.template operator()<k>(), ...); }
    (std::make_integer_sequence<int, kMoments>());
  }

  static HWY_INLINE void update_block(const StoredWork& work, const Step& step, std::int64_t j) {
    Lanes w[kVectors], moments[kVectors][kMomentArray];
    announce<kWeight>(work.w, j + work.ahead);
    for (int i = 0; i < kVectors; ++i) w[i] = Weight::template decode_at<Lanes>(work.w, j + i * Lanes::kLanes);
    each_moment([&]<int k>() FORGE_LAMBDA {
      announce<kState>(work.s[k], j + work.ahead);
      for (int i = 0; i < kVectors; ++i)
        moments[i][k] = State<k>::template decode_at<Lanes>(work.s[k], j + i * Lanes::kLanes);
    });
    for (int i = 0; i < kVectors; ++i)
      Rule::update(w[i], Lanes(work.scale) * Lanes::load(work.g + j + i * Lanes::kLanes), moments[i], step);
    Weight::encode_block(w, work.w, j);
    each_moment([&]<int k>() FORGE_LAMBDA {
      Lanes moment[kVectors];
      for (int i = 0; i < kVectors; ++i) moment[i] = moments[i][k];
      State<k>::encode_block(moment, work.s[k], j);
    });
  }

  // Asks for the memory of a block.
  template <Format kFormat>
  static HWY_INLINE void announce(const Segment& s, std::int64_t j) {
    constexpr FormatInfo kInfo = info_of(kFormat);
    constexpr auto kBytes = static_cast<std::int64_t>(size_of(kInfo.values)),
                   kRest = static_cast<std::int64_t>(size_of(kInfo.rest));
    announce_bytes<kBlockColumns * kBytes>(static_cast<const char*>(s.values) + j * kBytes);
    // Scales are few.
    if constexpr (kInfo.has_rest && kInfo.columns_of_rest == 1)
      announce_bytes<kBlockColumns * kRest>(static_cast<const char*>(s.rest) + j * kRest);
  }
  template <std::int64_t kBytes>
  static HWY_INLINE void announce_bytes(const char* from) {
    constexpr int kLine = 64;
    for (int i = 0; i < kBytes; i += kLine) __builtin_prefetch(from + i);
  }
};

// Calls f.operator()<weight, state>() for the pairs of formats; fp32 throughout needs no codec.
template <class F>
void for_each_pair(F&& f) {
  auto with_states = [&]<Format kWeight>() {
    if constexpr (kWeight != Format::fp32) f.template operator()<kWeight, Format::fp32>();
    f.template operator()<kWeight, Format::bf16>();
    f.template operator()<kWeight, Format::bf16_stochastic>();
    f.template operator()<kWeight, Format::int8>();
    f.template operator()<kWeight, Format::fp8>();
  };
  with_states.template operator()<Format::fp32>();
  with_states.template operator()<Format::bf16>();
  with_states.template operator()<Format::bf16_stochastic>();
  with_states.template operator()<Format::bf16_plus16>();
  with_states.template operator()<Format::bf16_plus8>();
}

// A loop is 1 to 4 KB and a quarter of a second of compilation: the rules that most weights are trained with have one
// for each pair of formats, others go by codecs' loops.
template <class F>
void for_each_rule(F&& f) {
  f.template operator()<rules::AdamW>();
  f.template operator()<rules::Adam>();
  f.template operator()<rules::SgdMomentum>();
  f.template operator()<rules::Sgd>();
  f.template operator()<rules::Lion>();
}

StoredRun find_stored(const RuleInfo& rule, Format weight, Format state) {
  StoredRun found = nullptr;
  for_each_rule([&]<class Rule>() {
    if (rule.id != fnv1a(Rule::kName)) return;
    for_each_pair([&]<Format kWeight, Format kState>() {
      if constexpr (!Rule::kMoments.empty() || kState == Format::fp32)
        if (weight == kWeight && state == kState) found = StoredLoop<Rule, kWeight, kState>::run;
    });
  });
  return found;
}

}  // namespace

constexpr StoredHalf kStoredHalf = {find_stored};

}  // namespace HWY_NAMESPACE

extern const StoredHalf FORGE_ISA(stored);
const StoredHalf FORGE_ISA(stored) = HWY_NAMESPACE::kStoredHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
