#pragma once

#include <cstdint>
#include <utility>

#include "forge/kernels/cuda/stored.cuh"
#include "forge/kernels/rule_loop.h"
#include "forge/rules/list.h"

namespace forge::cuda {

// Calls f.template operator()<0>(), …, <n − 1>().
template <int n, class F>
FORGE_DEVICE void unrolled(F&& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (f.template operator()<i>(), ...); }
  (std::make_integer_sequence<int, n>());
}

template <int kMatrices>
struct WeightArguments {
  StoredArguments matrices[kMatrices];  // the weight, then its moments
  Noise noise;
  int rows, cols;

  FORGE_DEVICE Spot spot(int row, int col) const { return spot_in(rows, cols, row, col); }
};

// W, S ← Rule(W, S, scale · g) on four columns of a row a thread, so on 128 a warp. What feeds it, memory or a tile's
// strip, does not show in any bit. All lanes of a warp have to call update together; those without columns take part in
// nothing but the vote on their block's scale, as zeros.
template <class Rule, class WeightStored, class StateStored>
struct RowOperation {
  static_assert(is_element_wise(kRuleInfo<Rule>));
  static constexpr int kMoments = static_cast<int>(Rule::kMoments.size()), kMatrices = 1 + kMoments;
  using Arguments = WeightArguments<kMatrices>;
  using Step = typename Rule::Step;

  struct Loaded {
    Raw raw[kMatrices];
  };

  FORGE_DEVICE static Loaded load(const Arguments& weight, const Spot& at) {
    Loaded loaded;
    unrolled<kMatrices>([&]<int i>() { loaded.raw[i] = load_raw<StoredAs<i>>(weight.matrices[i], at); });
    return loaded;
  }

  FORGE_DEVICE static void update(const Arguments& weight, const Step& step, const Spot& at, const Loaded& loaded,
                                  const float* g, float scale) {
    float x[kMatrices][kThreadColumns];
    float* moments[kMatrices];
    unrolled<kMatrices>([&]<int i>() {
      decode<StoredAs<i>, sign_of<i>()>(weight.matrices[i], loaded.raw[i], x[i]);
      if constexpr (i > 0) moments[i - 1] = x[i];
    });
    RuleLoop<Rule, Columns>::apply(x[0], moments, g, Columns::kLanes, scale, step, nullptr);
    unrolled<kMatrices>([&]<int i>() {
      constexpr bool kWritten = i == 0 ? PassOf<Rule>::kWritesWeight : PassOf<Rule>::kWritesMoments;
      if constexpr (kWritten) store<i>(weight, at, x[i]);
    });
  }

 private:
  template <int i>
  using StoredAs = std::conditional_t<i == 0, WeightStored, StateStored>;

  template <int i>
  static constexpr Sign sign_of() {
    if constexpr (i == 0)
      return Sign::any;
    else
      return Rule::kMoments[i - 1].sign;
  }

  template <int i>
  FORGE_DEVICE static void store(const Arguments& weight, const Spot& at, float* x) {
    using Format = StoredAs<i>;
    const StoredArguments& m = weight.matrices[i];
    Columns::each([&](int c) { x[c] = c < at.valid ? x[c] : 0; });
    Raw raw;
    if (Format::layout(m).random_bits > 0) {
      NoisePlace place = Format::template noise<i>(m);
      std::uint32_t noise[2];
      draw_four(weight.noise, place.use, weight.cols, at, noise);
      raw = encode<Format, sign_of<i>()>(m, x, noise, place.byte);
    } else {
      raw = encode<Format, sign_of<i>()>(m, x);
    }
    store_raw<Format>(m, at, raw);
  }
};

}  // namespace forge::cuda
