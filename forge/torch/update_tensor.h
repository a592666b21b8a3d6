#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "forge/gradient/terms.h"
#include "forge/kernels/rounding.h"
#include "forge/rules/list.h"
#include "forge/torch/device_kernels.h"
#include "forge/torch/stored_tensor.h"

namespace forge {

// Updates of weights whose gradient is a matrix in memory, by rules of one pass, but where its scale is a device's: a
// launch reads one, and norms and biases are scaled where they are. They wait here, and run together:
// those of one rule with the same constants in one launch, on a device that is launched onto. What they work on has to
// live until then.
class UpdatesTogether {
 public:
  UpdatesTogether() = default;
  UpdatesTogether(const UpdatesTogether&) = delete;
  UpdatesTogether& operator=(const UpdatesTogether&) = delete;
  // Runs what still waits where something else failed: these updates have been counted.
  ~UpdatesTogether();
  // Whether the update is one of these; then it waits.
  bool take(const Place& place, const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule);
  void run();

 private:
  struct Group {
    Place place;
    RuleStep rule;
    std::vector<DenseUpdate> updates;
  };
  std::vector<Group> groups_;
};

// W, S ← Rule(W, S, G), through the fused kernel, in all passes that the rule takes. S is dense in the order of W's
// memory; a weight with gaps in its memory is updated in a contiguous copy and written back. Moments are
// of the weight's shape or as sizes_of_moment (stored_tensor.h) has them. A direction that is to be orthogonal is one
// fp32 matrix of the weight's shape, which lives until this returns. The version counters of what is written move, so
// that autograd notices a later use of what it saved. exact: as Place has it. rounding: as the kernel has it. Where
// `together` is given and takes the update, it runs with the others.
void update_tensor(const StoredTensor& weight, const Noise& noise, at::ArrayRef<StoredTensor> moments,
                   const Expression& G, const RuleStep& rule, bool exact = false,
                   std::span<RoundingCount> rounding = {}, UpdatesTogether* together = nullptr);

// Throws where there is no memory for what update_tensor() takes of the weight's size for itself: the copy of one with
// gaps, and what an orthogonal direction takes.
void try_memory(const at::Tensor& weight, const RuleStep& rule);

}  // namespace forge
