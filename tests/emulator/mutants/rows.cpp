#include "forge/kernels/cuda/launch_rows.h"
#include "tests/emulator/mutants/parts.h"

namespace forge {

void launch_rows(std::span<const cuda::WeightInMemory> weights, const RuleStep& rule) {
  cuda::launch_rows<rules::AdamW>(weights, rule, {});
}

}  // namespace forge
