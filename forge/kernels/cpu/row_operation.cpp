#include "forge/kernels/cpu/row_operation.h"

#include <algorithm>
#include <atomic>
#include <cassert>

#include "forge/base/integers.h"
#include "forge/kernels/norm_lanes.h"

namespace forge::cpu {
namespace {

// How far ahead memory is announced: with fp32, 1 KiB. Measured, Zen 4: 128 to 1024 make no difference. At the end of a
// strip that is no whole row, that is the strip beside it: beyond 512 steps, where the product has time enough.
constexpr std::int64_t kColumnsAhead = 256;
constexpr std::int64_t kLineBytes = 64;

// The addresses behind a row's end are those of the next row or nobody's.
void prefetch_columns(const Matrix& m, std::int64_t row, std::int64_t col, std::int64_t n) {
  const char* from = static_cast<const char*>(m.at(row, col));
  for (std::int64_t i = 0; i < n * static_cast<std::int64_t>(size_of(m.dtype)); i += kLineBytes)
    __builtin_prefetch(from + i);
}

// Calls f(offset, n) for each block of n columns.
template <class F>
void for_each_block(std::int64_t n, const F& f) {
  for (std::int64_t j = 0; j < n; j += kRowBlock) f(j, std::min(kRowBlock, n - j));
}

// Workers share the count.
void add(const RoundingCount& part, RoundingCount& to) {
  auto add_one = [](std::int64_t n, std::int64_t& sum) {
    if (n > 0) std::atomic_ref(sum).fetch_add(n, std::memory_order_relaxed);
  };
  add_one(part.elements, to.elements);
  add_one(part.lost, to.lost);
  add_one(part.saturated, to.saturated);
  add_one(part.not_finite, to.not_finite);
}

}  // namespace

RowStore::RowStore(const Stored& stored, Sign sign, Target target, Extent extent)
    : stored_(stored),
      extent_(extent),
      codec_(format_half(target).codec(stored.format, sign)),
      layout_{size_of(stored.values.dtype), size_of(stored.rest.dtype), info_of(stored.format).columns_of_rest} {}

float* RowStore::place(std::int64_t row, std::int64_t col, float* buffer) const {
  return is_fp32() ? static_cast<float*>(stored_.values.at(row, col)) : buffer;
}

float* RowStore::load(std::int64_t row, std::int64_t col, std::int64_t n, float* buffer) const {
  if (extent_ == Extent::row) {
    std::fill_n(buffer, n, *static_cast<const float*>(stored_.values.at(row, 0)));
    return buffer;
  }
  if (extent_ == Extent::column) row = 0;
  if (!is_fp32()) codec_.decode(segment_at(stored_, row, col), layout_, n, buffer);
  return place(row, col, buffer);
}

void RowStore::store(const Segment& segment, std::int64_t n, const float* x) const {
  if (!is_fp32()) codec_.encode(x, layout_, n, segment);
}

void RowStore::prefetch(std::int64_t row, std::int64_t col, std::int64_t n) const {
  if (extent_ != Extent::element) return;  // a line or two, in cache
  prefetch_columns(stored_.values, row, col, n);
  std::int64_t columns = layout_.columns_of_rest;
  if (stored_.rest.data) prefetch_columns(stored_.rest, row, col / columns, ceil_div(n, columns));
}

const std::uint16_t* BlockNoise::of(std::uint32_t use) {
  if (use != use_) {
    assert(drawn_ <= kMaxMoments);
    Noise noise = source_.noise;
    noise.use = use_ = use;
    source_.fill(noise, source_.in, row_, col_, n_, bits_[drawn_++]);
  }
  return bits_[drawn_ - 1];
}

RowOperation::RowOperation(const Stored& W, std::span<const Stored> S, const RuleStep& rule, float scale, Target target,
                           std::span<RoundingCount> rounding)
    : n_stores_(static_cast<int>(1 + S.size())),
      run_(rule_loop(rule.rule(), target)),
      rule_takes_tiles_(rule_half(target).takes_tiles && run_ != rule_loop(rule.rule(), Target::ref)),
      add_squares_(format_half(target).add_squares),
      rule_(rule),
      scale_(scale),
      noise_{W.noise, W.values.cols, format_half(target).noise},
      rounding_(rounding) {
  stores_[0] = RowStore(W, Sign::any, target);
  formats_[0] = W.format;
  for (std::size_t k = 0; k < S.size(); ++k) {
    const Moment& moment = rule.rule().moments[k];
    stores_[1 + k] = RowStore(S[k], moment.sign, target, moment.extent);
    formats_[1 + k] = S[k].format;
  }
  auto used = std::span(stores_).first(1 + S.size());
  in_place_ = std::ranges::all_of(used, &RowStore::in_place);
  direct_ = in_place_ && rounding.empty() && rule.rule().sums == 0;
  const bool alike = std::ranges::all_of(S, [&](const Stored& s) { return s.format == S[0].format; });
  if (alike && rounding.empty())
    run_stored_ = stored_half(target).find(rule.rule(), W.format, S.empty() ? Format::fp32 : S[0].format);
}

Segment RowOperation::segment(int which, std::int64_t row, std::int64_t col, BlockNoise& noise) const {
  auto i = static_cast<std::size_t>(which);
  Segment segment = stores_[i].segment(row, col);
  if (info_of(formats_[i]).random_bits == 0) return segment;
  NoisePlace place = noise_place(formats_[i], which);
  segment.noise = noise.of(place.use);
  segment.noise_byte = place.byte;
  return segment;
}

void RowOperation::count(std::int64_t row, std::int64_t col, std::int64_t n, const BlockBefore& before,
                         float* const* results) const {
  float buffer[kRowBlock];
  for (std::size_t i = 0; i < rounding_.size(); ++i) {
    if (!rule_.rule().writes(static_cast<int>(i))) continue;
    RoundingCount part;
    count_rounding(before[i], results[i], stores_[i].load(row, col, n, buffer), n, part);
    add(part, rounding_[i]);
  }
}

void RowOperation::update(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, double* lanes,
                          const Tile* tile) const {
  if (direct_) {
    float* x[1 + kMaxMoments];
    for (int i = 0; i < n_stores_; ++i) x[i] = stores_[static_cast<std::size_t>(i)].place(row, col, nullptr);
    return run_({x[0], x + 1, g, n, scale_, rule_.constants(), nullptr, kColumnsAhead, tile});
  }
  for_each_block(n, [&](std::int64_t offset, std::int64_t block) {
    update_block(row, col + offset, block, g + offset, lanes, offset == 0 ? tile : nullptr);
  });
}

void RowOperation::update_block(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, double* lanes,
                                const Tile* tile) const {
  std::int64_t stored = run_stored_ ? n / kBlockColumns * kBlockColumns : 0;
  if (stored > 0) update_stored(row, col, stored, g);
  if (stored < n) update_decoded(row, col + stored, n - stored, g + stored, lanes, tile);
}

void RowOperation::update_stored(std::int64_t row, std::int64_t col, std::int64_t n, const float* g) const {
  BlockNoise noise(noise_, row, col, n);
  Segment segments[1 + kMaxMoments];
  for (int i = 0; i < n_stores_; ++i) segments[i] = segment(i, row, col, noise);
  run_stored_({segments[0], segments + 1, g, n, scale_, rule_.constants(), kColumnsAhead});
}

void RowOperation::update_decoded(std::int64_t row, std::int64_t col, std::int64_t n, const float* g, double* lanes,
                                  const Tile* tile) const {
  const RuleInfo& info = rule_.rule();
  float buffers[1 + kMaxMoments][kRowBlock], numbers_of[kMaxSums][kRowBlock];
  float *x[1 + kMaxMoments], *numbers[kMaxSums];
  for (int k = 0; k < kMaxSums; ++k) numbers[k] = numbers_of[k];
  BlockBefore before;
  BlockNoise noise(noise_, row, col, n);
  for (int i = 0; i < n_stores_; ++i) x[i] = stores_[static_cast<std::size_t>(i)].load(row, col, n, buffers[i]);
  for (std::size_t i = 0; i < rounding_.size(); ++i) std::copy_n(x[i], n, before[i]);
  run_({x[0], x + 1, g, n, scale_, rule_.constants(), numbers, in_place_ ? kColumnsAhead : 0, tile});
  for (int i = 0; i < n_stores_; ++i) {
    if (!in_place_) stores_[static_cast<std::size_t>(i)].prefetch(row, col + n, kColumnsAhead);
    if (info.writes(i)) stores_[static_cast<std::size_t>(i)].store(segment(i, row, col, noise), n, x[i]);
  }
  if (!rounding_.empty()) count(row, col, n, before, x);
  for (int k = 0; k < info.sums; ++k) add_squares_(lanes + k * kNormLanes, numbers[k], n, 1);
}

RowStorer::RowStorer(const Matrix& D, float scale, Target target)
    : D_(D, Sign::any, target), scale_(scale), scaled_(rule_half(target).scaled) {}

void RowStorer::store(std::int64_t row, std::int64_t col, std::int64_t n, const float* g) const {
  float buffer[kRowBlock];
  for_each_block(n, [&](std::int64_t offset, std::int64_t block) {
    float* x = D_.place(row, col + offset, buffer);
    scaled_(g + offset, block, scale_, x);
    D_.store(D_.segment(row, col + offset), block, x);
  });
}

}  // namespace forge::cpu
