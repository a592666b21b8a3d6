#include "forge/kernels/cuda/tiles.cuh"
#include "forge/base/integers.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/ffma.cuh"
#include "forge/kernels/cuda/mma.cuh"
#include "tests/emulator/mutants/parts.h"

namespace forge {

template <class Chain>
void launch(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule) {
  using namespace cuda;
  using Operation = RowOperation<rules::AdamW, Fixed<Format::bf16_stochastic>, Fixed<Format::int8>>;
  launch_kernel(
      update_tiles<Chain, Operation>,
      {static_cast<unsigned>(ceil_div(G.in, kTile)), static_cast<unsigned>(ceil_div(G.out, kTile)), 1}, kChainThreads,
      kChainShared, nullptr,
      UpdateArguments<Operation>{{weight_arguments<3>(W, S, {}), *rule.get<rules::AdamW>()}, chain_arguments(G, {})});
}

void launch_tiles(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule) {
  launch<cuda::FfmaChain>(W, S, G, rule);
}
void launch_halves(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule) {
  launch<cuda::MmaChain>(W, S, G, rule);
}

}  // namespace forge
