#include "forge/kernels/cuda/hopper.h"

#include <algorithm>
#include <limits>

#include "forge/base/integers.h"
#include "forge/kernels/check.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/hopper.cuh"
#include "forge/kernels/cuda/instances.h"

namespace forge::cuda {
namespace {

using LaunchUpdate = void (*)(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                              const Launch& launch);

constexpr int kCapability = 90;

bool can_load(const ConstMatrix& m) {
  constexpr int kBytes = 16;  // TMA's unit
  return m.dtype == DType::bf16 && m.stride * 2 % kBytes == 0 && reinterpret_cast<std::uintptr_t>(m.data) % kBytes == 0;
}

TensorMap tensor_map(const ConstMatrix& m) {
  return encode_tensor_map(m.data, m.rows, m.cols, m.stride * 2, hopper::kStageTokens, hopper::kBox);
}

template <class End>
HopperArguments<End> hopper_arguments(const Expression& G, const Launch& launch, const typename End::Arguments& rows) {
  const Outer& term = std::get<Outer>(G.terms.front());
  return {tensor_map(term.dY),
          tensor_map(term.X),
          static_cast<int>(G.out),
          static_cast<int>(G.in),
          static_cast<int>(term.X.rows),
          G.scale,
          launch.numbers,
          rows};
}

std::int64_t tiles_of(const Expression& G) { return ceil_div(G.out, kTile) * ceil_div(G.in, kTile); }

// A block for each multiprocessor, of which it takes all shared memory.
template <class Kernel, class Arguments>
void launch_blocks(Kernel kernel, const Expression& G, const Launch& launch, const Arguments& arguments) {
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(device_facts().multiprocessors, tiles_of(G)));
  launch_kernel(kernel, {blocks, 1, 1}, hopper::kThreads, hopper::kShared, launch.stream, arguments);
}

template <class Rule, Format kWeight, Format kState>
void launch_update(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                   const Launch& launch) {
  using Operation = RowOperation<Rule, Fixed<kWeight>, Fixed<kState>>;
  launch_blocks(update_tiles_on_hopper<Operation>, G, launch,
                hopper_arguments<RowUpdate<Operation>>(
                    G, launch, {weight_arguments<Operation::kMatrices>(W, S, launch.numbers), *rule.get<Rule>()}));
}

LaunchUpdate find_fused(const RuleInfo& rule, const Stored& W, std::span<const Stored> S) {
  LaunchUpdate found = nullptr;
  for_each_fused_on_hopper([&]<class Rule, Format kWeight, Format kState>() {
    if (is_instance<Rule, kWeight, kState>(rule, W, S)) found = launch_update<Rule, kWeight, kState>;
  });
  return found;
}

void check_product(const char* who, const Expression& G, const Launch& launch) {
  check_expression(who, G);
  check(!launch.exact, who, ": the bits of Target::ref are made by fp32 multiply-adds only");
  check(can_multiply_on_hopper(G), who,
        ": expected one product of two bf16 matrices, without a factor, of at least one ",
        "token, with rows on multiples of 16 bytes");
  check(tiles_of(G) <= std::numeric_limits<int>::max() / 2, who, ": ", tiles_of(G),
        " tiles are too many for one kernel");
  const int capability = device_facts().capability;
  check(capability == kCapability, who, ": the device has compute capability ", capability / 10, ".", capability % 10,
        ", expected 9.0");
}
bool is_empty(const Expression& G) { return G.out == 0 || G.in == 0; }

}  // namespace

bool is_hopper() { return device_facts().capability == kCapability; }

bool can_multiply_on_hopper(const Expression& G) {
  if (G.terms.size() != 1) return false;
  const Outer* term = std::get_if<Outer>(&G.terms.front());
  return term && term->scale == 1 && term->X.rows > 0 && can_load(term->dY) && can_load(term->X);
}

bool can_update_on_hopper(const RuleInfo& rule, const Stored& W, std::span<const Stored> S, const Expression& G) {
  return can_multiply_on_hopper(G) && find_fused(rule, W, S) != nullptr;
}

void update_on_hopper(const Stored& W, std::span<const Stored> S, const Expression& G, const RuleStep& rule,
                      const Launch& launch) {
  check_product("update_on_hopper", G, launch);
  check_weight("update_on_hopper", W, S, G.out, G.in, rule);
  LaunchUpdate fused = find_fused(rule.rule(), W, S);
  check(fused != nullptr, "update_on_hopper: there is no kernel of ", rule.name(), " for W in ", name_of(W.format),
        "; update has others");
  if (!is_empty(G)) fused(W, S, G, rule, launch);
}

void materialize_on_hopper(const Matrix& D, const Expression& G, const Launch& launch) {
  check_product("materialize_on_hopper", G, launch);
  check_materialized("materialize_on_hopper", D, G);
  if (is_empty(G)) return;
  launch_blocks(store_tiles_on_hopper, G, launch,
                hopper_arguments<RowStore>(G, launch, weight_arguments<1>(D, {}, launch.numbers)));
}

}  // namespace forge::cuda
