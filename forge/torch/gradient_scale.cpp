#include <ATen/ops/mul.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cmath>
#include <utility>

#include "forge/base/error.h"
#include "forge/torch/gradient.h"

namespace forge {

void Gradient::mul_(double factor) {
  Lock held = lock();
  check_not_spent();
  if (!exposed_) {
    Scale scale = scale_;
    scale.mul_(factor);
    if (scale.on_device() || std::isfinite(scale.read())) {
      scale_ = scale;
      return;
    }
    // Inf and NaN meet elements, as 0 · Inf is NaN; factors of terms, and rows that have none, they must not meet.
    if (!terms_.empty()) replace_by(materialize(at::kFloat), "a scale that is not finite");
    scale_ = {};
    scale_.mul_(factor);
    return;
  }
  c10::impl::ExcludeDispatchKeyGuard no_autograd(c10::autograd_dispatch_keyset);
  dense_.mul_(static_cast<float>(factor));
}

void Gradient::mul_(const at::Tensor& factor) {
  check(factor.defined() && factor.numel() == 1, "Gradient: a factor has ", factor.defined() ? factor.numel() : 0,
        " elements, expected one");
  Lock held = lock();
  if (factor.is_cpu() || device_.is_cpu()) return mul_(factor.item<double>());
  check_not_spent();
  c10::impl::ExcludeDispatchKeyGuard no_autograd(c10::autograd_dispatch_keyset);
  if (exposed_)
    scale_in_place(dense_, factor);
  else
    scale_.mul_(factor, device_);
}

// A device's scale becomes the host's.
void Gradient::read_scale() {
  if (!scale_.on_device()) return;
  float scale = std::exchange(scale_, {}).read();
  mul_(scale);
}

// What a term that arrives now is multiplied by, so that the scale of all leaves it as it is.
float Gradient::next_scale() {
  if (terms_.empty()) scale_ = {};
  read_scale();
  float scale = scale_.read();
  if (scale == 1) return 1;
  float inverse = 1 / scale;
  if (std::isnormal(inverse)) return inverse;
  // 0, Inf or NaN cannot be divided out again: it goes into the terms that it belongs to.
  replace_by(materialize(at::kFloat), "a scale that has no inverse");
  scale_ = {};
  return 1;
}

}  // namespace forge
