#include "forge/rules/sgd.h"

#include "forge/base/error.h"

namespace forge::rules {
namespace {

void check_options(const SgdOptions& o) {
  check(o.lr >= 0, "SGD: lr is ", o.lr, "; give 0 or more");
  check(o.momentum >= 0, "SGD: momentum is ", o.momentum, "; give 0 or more");
  check(o.weight_decay >= 0, "SGD: weight_decay is ", o.weight_decay, "; give 0 or more");
  check(!o.nesterov || (o.momentum > 0 && o.dampening == 0),
        "SGD: nesterov needs momentum above 0 and dampening 0, got momentum ", o.momentum, " and dampening ",
        o.dampening);
}

}  // namespace

Sgd::Step Sgd::prepare(const SgdOptions& o) {
  check_options(o);
  check(o.momentum == 0, "SGD: momentum is ", o.momentum, "; this rule has no state for it, use sgd_momentum");
  return {.minus_lr = static_cast<float>(-o.lr),
          .weight_decay = static_cast<float>(o.weight_decay),
          .maximize = o.maximize};
}

SgdMomentum::Step SgdMomentum::prepare(const SgdOptions& o, std::int64_t step) {
  check_options(o);
  check(step >= 1, "SGD: step is ", step, "; the first update is step 1");
  bool first = step == 1;
  return {.minus_lr = static_cast<float>(-o.lr),
          .weight_decay = static_cast<float>(o.weight_decay),
          .momentum = static_cast<float>(o.momentum),
          .keep = first ? 0.f : static_cast<float>(o.momentum),
          .add = first ? 1.f : static_cast<float>(1 - o.dampening),
          .nesterov = o.nesterov,
          .maximize = o.maximize};
}

}  // namespace forge::rules
