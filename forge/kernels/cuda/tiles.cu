#include "forge/kernels/cuda/tiles.cuh"

#include "forge/base/integers.h"
#include "forge/kernels/check.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/choose_kernel.h"
#include "forge/kernels/cuda/ffma.cuh"
#include "forge/kernels/cuda/instances.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/cuda/mma.cuh"

namespace forge::cuda {
namespace {

// A launch's arguments of the instance, by the formats of its matrices; null where there is none.
using LaunchUpdate = void (*)(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                              const Launch& launch);

dim3 tiles_of(const Expression& G) {
  return {static_cast<unsigned>(ceil_div(G.in, kTile)), static_cast<unsigned>(ceil_div(G.out, kTile)), 1};
}
bool is_empty(const Expression& G) { return G.out == 0 || G.in == 0; }

// Calls f.template operator()<Chain>() with what makes G's tiles.
template <class F>
void with_chain(const Expression& G, const Launch& launch, F&& f) {
  switch (choose_multiplier(G, launch.exact)) {
    case Multiplier::ffma:
      return f.template operator()<FfmaChain>();
    case Multiplier::mma:
      return f.template operator()<MmaChain>();
  }
}

template <class Rule, Format kWeight, Format kState>
void launch_update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                   const Launch& launch) {
  using Operation = RowOperation<Rule, Fixed<kWeight>, Fixed<kState>>;
  UpdateArguments<Operation> arguments = {
      {weight_arguments<Operation::kMatrices>(W, S, launch.numbers), *rule.get<Rule>()},
      chain_arguments(G, launch.numbers)};
  with_chain(G, launch, [&]<class Chain>() {
    launch_kernel(update_tiles<Chain, Operation>, tiles_of(G), kChainThreads, kChainShared, launch.stream, arguments);
  });
}

LaunchUpdate find_fused(const RuleInfo& rule, const Stored& W, std::span<const Stored> S) {
  LaunchUpdate found = nullptr;
  for_each_fused([&]<class Rule, Format kWeight, Format kState>() {
    if (is_instance<Rule, kWeight, kState>(rule, W, S)) found = launch_update<Rule, kWeight, kState>;
  });
  return found;
}

}  // namespace

void update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
            const Launch& launch) {
  check_expression("update", G);
  check_weight("update", W, S, G.out, G.in, rule);
  LaunchUpdate fused = find_fused(rule.rule(), W, S);
  check(fused != nullptr, "update: there is no fused kernel of ", rule.name(), " for W in ", name_of(W.format),
        "; materialize and update_rows do the same");
  if (!is_empty(G)) fused(W, S, G, rule, launch);
}

void materialize(const Matrix& D, const Expression& G, const Launch& launch) {
  check_expression("materialize", G);
  check_materialized("materialize", D, G);
  if (is_empty(G)) return;
  StoreArguments arguments = {weight_arguments<1>(D, {}, launch.numbers), chain_arguments(G, launch.numbers)};
  with_chain(G, launch, [&]<class Chain>() {
    launch_kernel(store_tiles<Chain>, tiles_of(G), kChainThreads, kChainShared, launch.stream, arguments);
  });
}

std::size_t norm_workspace_bytes(const Expression& G) { return static_cast<std::size_t>(G.out) * sizeof(double); }

void sum_squares(double* sum, const Expression& G, std::span<std::byte> workspace, const Launch& launch) {
  check_expression("sum_squares", G);
  check(workspace.size() >= norm_workspace_bytes(G) && reinterpret_cast<std::uintptr_t>(workspace.data()) % 8 == 0,
        "sum_squares: the workspace has ", workspace.size(), " bytes, ", norm_workspace_bytes(G),
        " are needed, aligned to 8 (norm_workspace_bytes)");
  auto* row_sums = reinterpret_cast<double*>(workspace.data());
  if (G.out > 0) {
    NormArguments arguments = {row_sums, chain_arguments(G, launch.numbers)};
    const dim3 blocks = {static_cast<unsigned>(ceil_div(G.out, kTile)), 1, 1};
    with_chain(G, launch, [&]<class Chain>() {
      launch_kernel(square_rows<Chain>, blocks, kChainThreads, kChainShared, launch.stream, arguments);
    });
  }
  add_row_sums(sum, row_sums, G.out, 1, launch);
}

}  // namespace forge::cuda
