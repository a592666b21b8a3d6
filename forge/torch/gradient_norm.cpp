#include <algorithm>
#include <cmath>
#include <limits>

#include "forge/torch/gradient.h"
#include "forge/torch/gram.h"

namespace forge {

// A step() forgets it, a gradient that is dropped first was skipped.
bool Gradient::note_finite(bool finite) const {
  if (!finite && ledger_ && !ledger_->not_finite) ledger_->not_finite = this;
  return finite;
}

double Gradient::sum_squares(bool exact) const {
  double sum = find_sum_squares(exact);
  note_finite(std::isfinite(sum));
  return sum;
}

double Gradient::find_sum_squares(bool exact) const {
  Expression G = expression();
  if (!exact && !gram_sum_) find_gram_sums();
  if (!exact && *gram_sum_) return **gram_sum_ * G.scale * G.scale;
  return kernels_of(device_.type()).sum_squares({device_, exact}, G);
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
  std::vector<Expression> unscaled;
  for (const Gradient* G : all) unscaled.push_back({G->shape_.out, G->shape_.in, G->terms_});
  auto sums = gram_sums_of_squares(unscaled, cache, device_);
  for (std::size_t i = 0; i < all.size(); ++i) all[i]->gram_sum_ = sums[i];
}

bool Gradient::finite() const {
  Expression G = expression();
  // Reading the factors once mostly tells; half of the range is left to the chain's rounding.
  if (auto bound = partial_sum_bound(G, device_); bound && *bound < std::numeric_limits<float>::max() / 2) return true;
  return note_finite(std::isfinite(kernels_of(device_.type()).sum_squares(place(), G)));
}

}  // namespace forge
