// The row operation half: rule × weight format × state format over one segment of a row. It knows no matrix product.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <variant>

#include "forge/base/scalar.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/isa.h"
#include "forge/kernels/norm_lanes.h"

HWY_BEFORE_NAMESPACE();
#include "forge/formats/list.h"
#include "forge/kernels/cpu/lanes.h"
#include "forge/rules/list.h"

namespace forge::cpu {
namespace HWY_NAMESPACE {
namespace {

// Columns that pass the rule before the first of them is encoded. A core looks some 250 instructions ahead; what is
// rounded and packed between one square root and the next leaves fewer of these to overlap. AdamW in bf16, 8 columns
// (measured, Zen 3): 8.0 ns with each register encoded at once, 7.1 in blocks of 16, 5.7 of 128, 5.5 of 256 (3 KiB of
// L1), 5.8 of 512.
constexpr int kBlock = 256;

// The numbers of a block between the rule and their encoding; fp32 needs no second pass.
template <class Format>
struct Stage {
  using Storage = typename Format::Storage;
  static constexpr bool kInPlace = std::is_same_v<Format, formats::Fp32>;
  float numbers[kInPlace ? 1 : kBlock];

  HWY_INLINE void put(Lanes x, int j, Storage* to) {
    if constexpr (kInPlace)
      x.store(to + j);
    else
      x.store(numbers + j);
  }
  HWY_INLINE void encode(int n, Storage* to) const {
    if constexpr (!kInPlace)
      for (int j = 0; j < n; j += LanePair::kLanes) Format::encode(LanePair::load(numbers + j), to + j);
  }
};

template <class Rule, class WeightFormat, class StateFormat>
struct Operation {
  using Weight = typename WeightFormat::Storage;
  using State = typename StateFormat::Storage;
  using Step = typename Rule::Step;
  static constexpr int kMoments = Rule::kMoments;
  static constexpr int kArray = std::max(kMoments, 1);  // C++ has no array of none
  static constexpr int kPair = LanePair::kLanes;

  // n: a multiple of kPair, at most kBlock.
  static HWY_INLINE void apply(Weight* w, State* const* s, const float* g, int n, float scale, const Step& step) {
    Stage<WeightFormat> weights;
    Stage<StateFormat> states[kArray];
    for (int j = 0; j < n; j += Lanes::kLanes) {
      Lanes x = WeightFormat::template decode<Lanes>(w + j);
      Lanes moments[kArray];
      for (int k = 0; k < kMoments; ++k) moments[k] = StateFormat::template decode<Lanes>(s[k] + j);
      Rule::update(x, Lanes(scale) * Lanes::load(g + j), moments, step);
      weights.put(x, j, w);
      for (int k = 0; k < kMoments; ++k) states[k].put(moments[k], j, s[k]);
    }
    weights.encode(n, w);
    for (int k = 0; k < kMoments; ++k) states[k].encode(n, s[k]);
  }

  // Fewer than kPair columns: through full registers on the stack, so that the arithmetic is the same.
  static void apply_rest(Weight* w, State* const* s, const float* g, std::int64_t n, float scale, const Step& step) {
    Weight w_full[kPair] = {};
    State s_full[kArray][kPair] = {};
    State* s_rows[kArray];
    float g_full[kPair] = {};
    std::memcpy(w_full, w, n * sizeof(Weight));
    std::memcpy(g_full, g, n * sizeof(float));
    for (int k = 0; k < kMoments; ++k) {
      s_rows[k] = s_full[k];
      std::memcpy(s_full[k], s[k], n * sizeof(State));
    }
    apply(w_full, s_rows, g_full, kPair, scale, step);
    std::memcpy(w, w_full, n * sizeof(Weight));
    for (int k = 0; k < kMoments; ++k) std::memcpy(s[k], s_full[k], n * sizeof(State));
  }

  static void run(void* w_row, void* const* s_rows, const float* g, std::int64_t n, float scale, const void* step_) {
    const auto step = *static_cast<const Step*>(step_);  // a copy: stores cannot alias it
    auto* w = static_cast<Weight*>(w_row);
    State* s[kArray];
    for (int k = 0; k < kMoments; ++k) s[k] = static_cast<State*>(s_rows[k]);
    while (n >= kPair) {
      int block = static_cast<int>(std::min<std::int64_t>(n / kPair * kPair, kBlock));
      apply(w, s, g, block, scale, step);
      w += block, g += block, n -= block;
      for (int k = 0; k < kMoments; ++k) s[k] += block;
    }
    if (n > 0) apply_rest(w, s, g, n, scale, step);
  }
};

RowUpdate find_update(std::size_t rule, DType weight, DType state) {
  RowUpdate found = nullptr;
  std::size_t index = 0;
  RuleList::for_each([&]<class Rule>() {
    FormatList::for_each([&]<class WeightFormat>() {
      FormatList::for_each([&]<class StateFormat>() {
        if (index == rule && WeightFormat::kDType == weight && StateFormat::kDType == state)
          found = Operation<Rule, WeightFormat, StateFormat>::run;
      });
    });
    ++index;
  });
  return found;
}

template <class Format>
void store_typed(void* d, const float* g, std::int64_t n, float scale) {
  auto* to = static_cast<typename Format::Storage*>(d);
  std::int64_t j = 0;
  for (; j + LanePair::kLanes <= n; j += LanePair::kLanes) {
    LanePair x = LanePair::load(g + j);
    Format::encode(LanePair(Lanes(scale) * x.low, Lanes(scale) * x.high), to + j);
  }
  for (; j < n; ++j) Format::encode(Scalar(scale * g[j]), to + j);
}

void store(void* d, DType dtype, const float* g, std::int64_t n, float scale) {
  FormatList::for_each([&]<class Format>() {
    if (Format::kDType == dtype) store_typed<Format>(d, g, n, scale);
  });
}

void add_squares(double* lanes, const float* g, std::int64_t n, float scale) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  constexpr std::int64_t kStep = HWY_LANES(double);
  std::int64_t j = 0;
  for (; j + kNormLanes <= n; j += kNormLanes)
    for (std::int64_t k = 0; k < kNormLanes; k += kStep) {
      auto x = hn::PromoteTo(d, hn::Mul(hn::Set(half, scale), hn::LoadU(half, g + j + k)));
      hn::StoreU(hn::MulAdd(x, x, hn::LoadU(d, lanes + k)), d, lanes + k);
    }
  for (std::int64_t k = 0; j < n; ++j, ++k) {
    double x = scale * g[j];
    lanes[k] += x * x;
  }
}

}  // namespace

constexpr RowHalf kRowHalf = {find_update, store, add_squares};

}  // namespace HWY_NAMESPACE

extern const RowHalf FORGE_ISA(row);
const RowHalf FORGE_ISA(row) = HWY_NAMESPACE::kRowHalf;

}  // namespace forge::cpu
HWY_AFTER_NAMESPACE();
