#include "forge/base/integers.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/ffma.cuh"
#include "tests/emulator/mutants/parts.h"

namespace forge {

void launch_tiles(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule) {
  using namespace cuda;
  using Operation = RowOperation<rules::AdamW, Fixed<Format::bf16_stochastic>, Fixed<Format::int8>>;
  launch_kernel(
      update_tiles<Operation>,
      {static_cast<unsigned>(ceil_div(G.in, kTile)), static_cast<unsigned>(ceil_div(G.out, kTile)), 1}, kChainThreads,
      kChainShared, nullptr,
      UpdateArguments<Operation>{weight_arguments<3>(W, S), *rule.get<rules::AdamW>(), chain_arguments(G, {})});
}

}  // namespace forge
