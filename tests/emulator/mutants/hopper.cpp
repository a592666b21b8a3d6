#include "forge/kernels/cuda/hopper.cuh"
#include "forge/kernels/cuda/arguments.h"
#include "tests/emulator/mutants/parts.h"

namespace forge {

void launch_on_hopper(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                      unsigned blocks) {
  using namespace cuda;
  using Operation = RowOperation<rules::AdamW, Fixed<Format::bf16_stochastic>, Fixed<Format::fp32>>;
  const Outer& term = std::get<Outer>(G.terms.front());
  auto map = [](const ConstMatrix& m) {
    return encode_tensor_map(m.data, m.rows, m.cols, m.stride * 2, hopper::kStageTokens, hopper::kBox);
  };
  launch_kernel(update_tiles_on_hopper<Operation>, {blocks, 1, 1}, hopper::kThreads, hopper::kShared, nullptr,
                HopperArguments<RowUpdate<Operation>>{map(term.dY),
                                                      map(term.X),
                                                      static_cast<int>(G.out),
                                                      static_cast<int>(G.in),
                                                      static_cast<int>(term.X.rows),
                                                      G.scale,
                                                      {},
                                                      {weight_arguments<3>(W, S, {}), *rule.get<rules::AdamW>()}});
}

}  // namespace forge
