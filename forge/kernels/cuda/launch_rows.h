#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "forge/base/integers.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/cuda/update_rows.cuh"

namespace forge::cuda {

// Enough to fill any device of today (192 multiprocessors with 8 blocks of 256 threads each); a warp takes more than
// one unit where there are more.
constexpr std::int64_t kMostBlocks = 1536;

// At most kMostWeights, which have been checked.
template <class Rule>
void launch_rows(std::span<const WeightInMemory> weights, const RuleStep& rule, const Launch& launch) {
  using Arguments = RowsArguments<Rule>;
  Arguments arguments = {{}, static_cast<int>(weights.size()), 0, *rule.get<Rule>(), launch.numbers};
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const WeightInMemory& w = weights[i];
    arguments.weights[i] = {weight_arguments<Arguments::Operation::kMatrices>(w.W, w.S, launch.numbers),
                            arguments_of(w.D.D),
                            w.D.scale,
                            w.scale,
                            w.row_sums,
                            arguments.units};
    std::int64_t units = w.W.values.rows * (kTakesRows<Rule> ? 1 : ceil_div(w.W.values.cols, kWarpColumns));
    check(units <= std::numeric_limits<std::uint32_t>::max(), "update_rows: a weight of (", w.W.values.rows, ", ",
          w.W.values.cols, ") is too large for one kernel");
    arguments.units += units;
  }
  if (arguments.units == 0) return;
  auto blocks = static_cast<unsigned>(std::min(ceil_div(arguments.units, kRowsThreads / 32), kMostBlocks));
  launch_kernel(update_rows<Rule>, {blocks, 1, 1}, kRowsThreads, 0, launch.stream, arguments);
}

// The rules' kernels are compiled in so many parts, since all in one take the compiler minutes: update_rows_part*.cu.
constexpr std::uint32_t kRowsParts = 4;

// update_rows, where the rule is of this part of the list; else false.
template <std::uint32_t kPart>
bool launch_rows_of_part(std::span<const WeightInMemory> weights, const RuleStep& rule, const Launch& launch) {
  bool known = false;
  RuleList::for_each([&]<class Rule>() {
    if constexpr (kRuleInfo<Rule>.id % kRowsParts == kPart) {
      if (known || rule.rule().id != kRuleInfo<Rule>.id) return;
      known = true;
      for (std::size_t from = 0; from < weights.size(); from += kMostWeights)
        launch_rows<Rule>(weights.subspan(from, std::min<std::size_t>(kMostWeights, weights.size() - from)), rule,
                          launch);
    }
  });
  return known;
}
extern template bool launch_rows_of_part<0>(std::span<const WeightInMemory>, const RuleStep&, const Launch&);
extern template bool launch_rows_of_part<1>(std::span<const WeightInMemory>, const RuleStep&, const Launch&);
extern template bool launch_rows_of_part<2>(std::span<const WeightInMemory>, const RuleStep&, const Launch&);
extern template bool launch_rows_of_part<3>(std::span<const WeightInMemory>, const RuleStep&, const Launch&);

}  // namespace forge::cuda
