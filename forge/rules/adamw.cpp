#include "forge/rules/adamw.h"

#include <cmath>

#include "forge/base/error.h"

namespace forge::rules {

AdamW::Step AdamW::prepare(const AdamWOptions& o, std::int64_t step) {
  check(o.lr >= 0, "AdamW: lr is ", o.lr, "; give 0 or more");
  check(o.beta1 >= 0 && o.beta1 < 1, "AdamW: beta1 is ", o.beta1, "; give a value in [0, 1)");
  check(o.beta2 >= 0 && o.beta2 < 1, "AdamW: beta2 is ", o.beta2, "; give a value in [0, 1)");
  check(o.eps >= 0, "AdamW: eps is ", o.eps, "; give 0 or more");
  check(o.weight_decay >= 0, "AdamW: weight_decay is ", o.weight_decay, "; give 0 or more");
  check(step >= 1, "AdamW: step is ", step, "; the first update is step 1");
  double c1 = 1 - std::pow(o.beta1, static_cast<double>(step));
  double c2 = 1 - std::pow(o.beta2, static_cast<double>(step));
  bool from_g = o.beta1 <= 0.5;
  return {.decay = static_cast<float>(1 - o.lr * o.weight_decay),
          .lerp = static_cast<float>(from_g ? -o.beta1 : 1 - o.beta1),
          .beta2 = static_cast<float>(o.beta2),
          .one_minus_beta2 = static_cast<float>(1 - o.beta2),
          .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(c2)),
          .eps = static_cast<float>(o.eps),
          .step_size = static_cast<float>(o.lr / c1),
          .from_g = from_g,
          .maximize = o.maximize};
}

}  // namespace forge::rules
