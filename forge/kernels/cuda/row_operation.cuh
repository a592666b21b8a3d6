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
  const std::int64_t* noise_step;  // on the device, in place of the noise's; or null
  int rows, cols;

  FORGE_DEVICE Spot spot(int row, int col) const { return spot_in(rows, cols, row, col); }
  FORGE_DEVICE Noise noise_now() const {
    Noise now = noise;
    if (noise_step) now.step = *noise_step;
    return now;
  }
};

// W, S ← Rule(W, S, scale · g) on four columns of a row a thread, so on 128 a warp. What feeds it, memory or a tile's
// strip, does not show in any bit. All lanes of a warp have to call update together; those without columns take part in
// nothing but the vote on their block's scale, as zeros.
template <class Rule, class WeightStored, class StateStored>
struct RowOperation {
  static constexpr int kMoments = static_cast<int>(Rule::kMoments.size()), kMatrices = 1 + kMoments;
  using Arguments = WeightArguments<kMatrices>;
  using Step = typename Rule::Step;

  struct Loaded {
    Raw raw[kMatrices];
  };

  FORGE_DEVICE static Loaded load(const Arguments& weight, const Spot& at) {
    Loaded loaded;
    unrolled<kMatrices>([&]<int i>() { loaded.raw[i] = load_raw<StoredAs<i>>(weight.matrices[i], spot_of<i>(at)); });
    return loaded;
  }

  // numbers: what a pass sums the squares of, four of each.
  FORGE_DEVICE static void update(const Arguments& weight, const Step& step, const Spot& at, const Loaded& loaded,
                                  const float* g, float scale, float* const* numbers = nullptr) {
    float x[kMatrices][kThreadColumns];
    float* moments[kMatrices];
    unrolled<kMatrices>([&]<int i>() {
      decode<StoredAs<i>, sign_of<i>()>(weight.matrices[i], loaded.raw[i], x[i]);
      if constexpr (extent_of<i>() == Extent::row) Columns::each([&](int c) { x[i][c] = x[i][0]; });
      if constexpr (i > 0) moments[i - 1] = x[i];
    });
    RuleLoop<Rule, Columns>::apply_at(0, {x[0], moments, g, numbers}, scale, step);
    unrolled<kMatrices>([&]<int i>() {
      constexpr bool kWritten = i == 0 ? PassOf<Rule>::kWritesWeight : PassOf<Rule>::kWritesMoments;
      if constexpr (kWritten) store<i>(weight, at, x[i]);
    });
  }

 private:
  template <int i>
  using StoredAs = std::conditional_t<i == 0, WeightStored, StateStored>;

  template <int i>
  static constexpr Moment moment() {
    if constexpr (i == 0)
      return {"weight"};
    else
      return Rule::kMoments[i - 1];
  }
  template <int i>
  static constexpr Sign sign_of() {
    return moment<i>().sign;
  }
  template <int i>
  static constexpr Extent extent_of() {
    return moment<i>().extent;
  }
  // Where the numbers lie that four columns have.
  template <int i>
  FORGE_DEVICE static Spot spot_of(const Spot& at) {
    if constexpr (extent_of<i>() == Extent::row) return {at.row, 0, at.valid > 0 ? 1 : 0};
    if constexpr (extent_of<i>() == Extent::column) return {0, at.col, at.valid};
    return at;
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
      draw_four(weight.noise_now(), place.use, weight.cols, at, noise);
      raw = encode<Format, sign_of<i>()>(m, x, noise, place.byte);
    } else {
      raw = encode<Format, sign_of<i>()>(m, x);
    }
    store_raw<Format>(m, at, raw);
  }
};

}  // namespace forge::cuda
