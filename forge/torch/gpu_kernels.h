#pragma once

#include <cstdint>

#include "forge/torch/device_kernels.h"

namespace forge {

// Kernels of forge/kernels/cuda. What has no fused kernel is multiplied out by slabs of rows: no gradient of a whole
// matrix is stored for it either.
class GpuKernels final : public DeviceKernels {
 public:
  // As much as a host's kernel packs of X.
  static constexpr std::int64_t kSlabBytes = 16 << 20;
  // slab_bytes: of a slab in fp32, but no less than the rows of a tile.
  explicit GpuKernels(const cuda::Operations& operations, std::int64_t slab_bytes = kSlabBytes)
      : operations_(operations), slab_bytes_(slab_bytes) {}

  std::optional<Pass> update(const Place& place, const Stored& W, std::span<const Stored> S, const Expression& G,
                             const Pass& pass, std::span<RoundingCount> rounding) const override;
  void update_all(const Place& place, std::span<const DenseUpdate> updates, const RuleStep& rule) const override;
  void materialize(const Place& place, const Matrix& D, const Expression& G) const override;
  at::Tensor sum_squares(const Place& place, const Expression& G, const std::optional<Known>& known) const override;
  void sum_squares_of_lines(const Place& place, const Expression& G, std::span<double> of_rows,
                            std::span<double> of_columns) const override;
  void check_rule(const char* who, const RuleInfo& rule, bool count_rounding) const override;
  std::size_t most_terms() const override { return cuda::kMostTerms; }

 private:
  class PassSums;
  void update_by_slabs(const Place& place, const Stored& W, std::span<const Stored> S, const Expression& G,
                       const Pass& pass, const PassSums& sums) const;
  // Calls f(from, D) with the rows of G from `from` on multiplied out to D, one slab after another.
  template <class F>
  void for_each_slab(const Place& place, const Expression& G, F&& f) const;

  cuda::Operations operations_;
  std::int64_t slab_bytes_;
};

}  // namespace forge
