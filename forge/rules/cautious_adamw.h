#pragma once

#include "forge/base/inline.h"
#include "forge/rules/uncorrected_adamw.h"

namespace forge {

// AdamW that moves only where the gradient agrees (Liang et al., arXiv 2411.16085), as the authors' class defines it
// with foreach=False (kyleliang919/C-Optim, c_adamw.py), but for their rescaling by the mean of the mask over the
// tensor: the direction is m where m g > 0, else 0.
struct CautiousAdamWOptions {
  static constexpr const char* kName = "CautiousAdamW";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 0;
  bool correct_bias = true;

  static void fields(auto& o, auto&& f) {
    adam_fields(o, f);
    f(Field{"correct_bias"}, o.correct_bias);
  }
};

namespace rules {

struct CautiousAdamW : UncorrectedAdamW<CautiousAdamW, CautiousAdamWOptions> {
  static constexpr const char* kName = "cautious_adamw";

  template <class V>
  FORGE_INLINE static V direction(V g, V m) {
    return select(m * g > V(0.f), m, V(0.f));
  }
};

}  // namespace rules
}  // namespace forge
