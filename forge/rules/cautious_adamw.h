#pragma once

#include <algorithm>
#include <array>

#include "forge/base/inline.h"
#include "forge/rules/uncorrected_adamw.h"

namespace forge {

// AdamW that moves only where the gradient agrees (Liang et al., arXiv 2411.16085), as the authors' class defines it
// with foreach=False (kyleliang919/C-Optim, c_adamw.py): the direction is m where m g > 0, else 0; with `rescale`,
// divided by the share of the weight's elements where that is so, or by 0.001 where that is less.
// Rescaled it takes two passes, which both need the gradient: its products are computed twice.
struct CautiousAdamWOptions {
  static constexpr const char* kName = "CautiousAdamW";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 0;
  bool correct_bias = true;
  bool rescale = true;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"correct_bias"}, o.correct_bias);
    f(Field{"rescale"}, o.rescale);
  }
};

namespace rules {

struct CautiousAdamW : UncorrectedAdamW<CautiousAdamW, CautiousAdamWOptions> {
  static constexpr const char* kName = "cautious_adamw";
  static bool fits(const Options& o) { return !o.rescale; }

  template <class V>
  FORGE_INLINE static V direction(V g, V m) {
    return select(m * g > V(0.f), m, V(0.f));
  }
};

// Counts the elements that will move.
struct CautiousAdamWMask {
  using Options = CautiousAdamWOptions;
  using Step = CautiousAdamW::Step;
  using Next = CautiousAdamW;
  static constexpr const char* kName = "cautious_adamw_mask";
  static constexpr std::array kMoments = CautiousAdamW::kMoments;
  static constexpr int kSums = 1;
  static constexpr bool kWritesWeight = false, kWritesMoments = false;

  static Step prepare(const Options& o, const Progress& p) { return CautiousAdamW::prepare(o, p); }
  FORGE_INLINE static Step next_pass(const Step& s, const Sums& sums) {
    Step next = s;
    next.step_size = static_cast<float>(s.step_size / std::max(sums.mean(0), 1e-3));
    return next;
  }

  template <class V>
  FORGE_INLINE static void update(V&, V g, V* moment, const Step& s, V* numbers) {
    V m = lerp(moment[0], g, s.moments.to_g);
    numbers[0] = select(m * g > V(0.f), V(1.f), V(0.f));
  }
};

}  // namespace rules
}  // namespace forge
