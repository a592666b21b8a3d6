#include "apps/forge/batches.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "forge/base/error.h"

namespace forge::app {
namespace {

// Fisher–Yates, spelled out: std::shuffle differs between standard libraries.
void shuffle(std::vector<std::int64_t>& order, std::uint64_t seed, std::uint64_t epoch) {
  std::mt19937_64 random(seed * 0x9E3779B97F4A7C15ull + epoch);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
}

}  // namespace

Batches::Batches(std::vector<std::int32_t> tokens, std::int64_t seq, std::uint64_t seed, bool shuffle)
    : tokens_(std::move(tokens)), seq_(seq), seed_(seed), shuffle_(shuffle) {
  const auto count = (static_cast<std::int64_t>(tokens_.size()) - 1) / seq;
  check(count > 0, "--data: ", tokens_.size(), " tokens do not fill one window of --seq ", seq,
        " + 1; give more text or a smaller --seq");
  order_.resize(count);
  begin_epoch();
}

void Batches::begin_epoch() {
  std::iota(order_.begin(), order_.end(), 0);
  if (shuffle_) shuffle(order_, seed_, epoch_);
  ++epoch_;
  position_ = 0;
}

at::Tensor Batches::next(std::int64_t batch) {
  at::Tensor result = at::empty({batch, seq_ + 1}, at::kLong);
  auto* out = result.mutable_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < batch; ++row) {
    if (position_ == order_.size()) begin_epoch();
    const auto first = tokens_.begin() + order_[position_++] * seq_;
    out = std::copy(first, first + seq_ + 1, out);
  }
  return result;
}

}  // namespace forge::app
