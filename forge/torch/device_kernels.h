#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "forge/formats/format.h"
#include "forge/gradient/terms.h"
#include "forge/kernels/cuda/operations.h"
#include "forge/kernels/rounding.h"
#include "forge/rules/list.h"
#include "forge/torch/gram.h"

namespace forge {

// On which device an operation runs.
struct Place {
  at::Device device = at::kCPU;
  bool exact = false;  // fp32 multiply-adds only, where a device has something faster
};

// A rule with the constants of one step or, where these are defined, with those in the device's memory in place of its
// own: what comes behind a pass whose sums the host has not waited for.
struct Pass {
  RuleStep rule;
  at::Tensor constants;

  const void* constants_on_device() const { return constants.defined() ? constants.const_data_ptr() : nullptr; }
};

// Of a weight whose gradient is scale · D in memory.
struct DenseUpdate {
  Stored W;
  std::vector<Stored> S;
  Dense D;
  float scale = 1;
};
// G's D, where that is all there is of it; else null.
const Dense* only_dense(const Expression& G);

// The operations of forge/kernels (update.h, materialize.h, norm.h and line_sums.h, which say what they do) in the
// memory of one kind of device. On one with streams they are launched onto its current stream; those that return
// numbers of the host's wait for them.
class DeviceKernels {
 public:
  virtual ~DeviceKernels() = default;
  // Returns the pass behind this one.
  virtual std::optional<Pass> update(const Place& place, const Stored& W, std::span<const Stored> S,
                                     const Expression& G, const Pass& pass,
                                     std::span<RoundingCount> rounding) const = 0;
  // update for each of these, by an element-wise rule. On a device with launches one for kMostWeights of them.
  virtual void update_all(const Place& place, std::span<const DenseUpdate> updates, const RuleStep& rule) const = 0;
  virtual void materialize(const Place& place, const Matrix& D, const Expression& G) const = 0;
  // Of one element in fp64, on the device. known: the result, which is computed only where that does not hold.
  virtual at::Tensor sum_squares(const Place& place, const Expression& G, const std::optional<Known>& known) const = 0;
  // As in line_sums.h. of_rows, of_columns: in the host's memory.
  virtual void sum_squares_of_lines(const Place& place, const Expression& G, std::span<double> of_rows,
                                    std::span<double> of_columns) const = 0;

  // Throws Error where there are no kernels of a rule, or rounding cannot be counted; before anything is updated.
  virtual void check_rule(const char* who, const RuleInfo& rule, bool count_rounding) const = 0;
  // An expression may have so many terms.
  virtual std::size_t most_terms() const = 0;
};

bool has_kernels(at::DeviceType type);
// Throws Error where there are none.
const DeviceKernels& kernels_of(at::DeviceType type);

// Tensors on devices of this type are updated by these from now on. Called when a library is loaded.
bool add_gpu(at::DeviceType type, const cuda::Operations& operations);

}  // namespace forge
