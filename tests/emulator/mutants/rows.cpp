#include <memory>

#include "forge/base/integers.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/update_rows.cuh"
#include "tests/emulator/mutants/parts.h"

namespace forge {

void launch_rows(std::span<const cuda::WeightInMemory> weights, const RuleStep& rule) {
  using namespace cuda;
  auto arguments = std::make_unique<RowsArguments<rules::AdamW>>();
  arguments->count = static_cast<int>(weights.size());
  arguments->step = *rule.get<rules::AdamW>();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const WeightInMemory& w = weights[i];
    arguments->weights[i] = {weight_arguments<3>(w.W, w.S), arguments_of(w.D.D), w.D.scale, w.scale,
                             arguments->segments};
    arguments->segments += w.W.values.rows * ceil_div(w.W.values.cols, kWarpColumns);
  }
  launch_kernel(update_rows<rules::AdamW>, {1, 1, 1}, kRowsThreads, 0, nullptr, *arguments);
}

}  // namespace forge
