#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "forge/torch/gradient.h"
#include "forge/torch/gram.h"

namespace forge {

// CPU only: to read a flag of a GPU would stall.
void Gradient::note(const at::Tensor& finite) const {
  if (finite.is_cpu() && !finite.item<bool>()) ledger_->note_not_finite(this);
}

at::Tensor Gradient::sum_squares(bool exact) const {
  Lock held = lock();
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
  GramCache& cache = ledger_->gram();
  std::vector<std::shared_ptr<Gradient>> others;
  std::vector<const Gradient*> all;
  if (cache.RRt.defined()) others = ledger_->alive();  // a norm has been asked for, and no gradient has changed since
  for (const auto& other : others)
    if (other.get() == this || (other->device_ == device_ && other->awaits_gram_sum())) all.push_back(other.get());
  if (std::ranges::find(all, this) == all.end()) all = {this};
  std::vector<Expression> gradients;
  for (const Gradient* G : all) gradients.push_back({G->shape_.out, G->shape_.in, G->terms_});
  auto sums = gram_sums_of_squares(gradients, cache, device_);
  for (std::size_t i = 0; i < all.size(); ++i) all[i]->gram_sum_ = sums[i];
}

at::Tensor Gradient::finite() const {
  Lock held = lock();
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
