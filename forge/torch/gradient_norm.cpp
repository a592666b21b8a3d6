#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

#include "forge/torch/gradient.h"
#include "forge/torch/gram.h"

namespace forge {

// Of the host's, for it does not wait for a device to count. A step() forgets it, a gradient that is dropped first was
// skipped.
void Gradient::note(const at::Tensor& finite) const {
  if (ledger_ && !ledger_->not_finite && finite.is_cpu() && !finite.item<bool>()) ledger_->not_finite = this;
}

at::Tensor Gradient::sum_squares(bool exact) const {
  at::Tensor sum = find_sum_squares(exact);
  if (sum.is_cpu()) note(sum.isfinite());
  return sum;
}

at::Tensor Gradient::find_sum_squares(bool exact) const {
  Expression G = expression();
  if (!exact && !gram_sum_) find_gram_sums();
  std::optional<Known> by_gram = exact ? std::nullopt : *gram_sum_;
  if (by_gram) {
    at::Tensor scale = scale_.as_tensor(device_);
    by_gram->value = by_gram->value.mul(scale).mul_(scale);
  }
  return kernels_of(device_.type()).sum_squares({device_, exact}, G, by_gram);
}

bool Gradient::awaits_gram_sum() const {
  auto unchanged = [&](const Kept& kept) { return is_unchanged(kept); };
  return !gram_sum_ && !exact_ && !spent_ && std::ranges::all_of(kept_, unchanged);
}

void Gradient::find_gram_sums() const {
  GramCache own;
  GramCache& cache = ledger_ ? ledger_->gram : own;
  std::vector<const Gradient*> all{this};
  if (ledger_ && cache.RRt.defined()) {  // a norm has been asked for, and no gradient has changed since
    all = ledger_->alive;
    std::erase_if(all, [&](const Gradient* other) {
      return other != this && (other->device_ != device_ || !other->awaits_gram_sum());
    });
  }
  std::vector<Expression> gradients;
  for (const Gradient* G : all) gradients.push_back({G->shape_.out, G->shape_.in, G->terms_});
  auto sums = gram_sums_of_squares(gradients, cache, device_);
  for (std::size_t i = 0; i < all.size(); ++i) all[i]->gram_sum_ = sums[i];
}

at::Tensor Gradient::finite() const {
  Expression G = expression();
  // Reading the factors once mostly tells; half of the range is left to the chain's rounding.
  std::optional<Known> known;
  if (auto bound = partial_sum_bound(G, device_)) {
    at::Tensor scaled = scale_.as_tensor(device_).abs_().clamp_min_(1).mul_(*bound);
    known = {at::zeros_like(scaled), scaled.lt(std::numeric_limits<float>::max() / 2).to(at::kFloat)};
  }
  at::Tensor finite = kernels_of(device_.type()).sum_squares(place(), G, known).isfinite();
  note(finite);
  return finite;
}

}  // namespace forge
