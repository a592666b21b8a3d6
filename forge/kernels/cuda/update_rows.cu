#include "forge/kernels/cuda/update_rows.cuh"

#include <algorithm>
#include <limits>

#include "forge/base/integers.h"
#include "forge/kernels/check.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/launch.h"

namespace forge::cuda {
namespace {

// Enough to fill any device of today (192 multiprocessors with 8 blocks of 256 threads each); a warp takes more than
// one segment where there are more.
constexpr std::int64_t kMostBlocks = 1536;

template <class Rule>
void launch_rows(std::span<const WeightInMemory> weights, const RuleStep& rule, const Launch& launch) {
  using Arguments = RowsArguments<Rule>;
  Arguments arguments = {{}, static_cast<int>(weights.size()), 0, *rule.get<Rule>(), launch.numbers};
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const WeightInMemory& w = weights[i];
    arguments.weights[i] = {weight_arguments<Arguments::Operation::kMatrices>(w.W, w.S), arguments_of(w.D.D), w.D.scale,
                            w.scale, arguments.segments};
    std::int64_t segments = w.W.values.rows * ceil_div(w.W.values.cols, kWarpColumns);
    check(segments <= std::numeric_limits<std::uint32_t>::max(), "update_rows: a weight of (", w.W.values.rows, ", ",
          w.W.values.cols, ") is too large for one kernel");
    arguments.segments += segments;
  }
  if (arguments.segments == 0) return;
  auto blocks = static_cast<unsigned>(std::min(ceil_div(arguments.segments, kRowsThreads / 32), kMostBlocks));
  launch_kernel(update_rows<Rule>, {blocks, 1, 1}, kRowsThreads, 0, launch.stream, arguments);
}

}  // namespace

void update_rows(std::span<const WeightInMemory> weights, const RuleStep& rule, const Launch& launch) {
  for (const WeightInMemory& w : weights) {
    check_weight("update_rows", w.W, w.S, w.W.values.rows, w.W.values.cols, rule);
    Term term = w.D;
    check_expression("update_rows", {w.W.values.rows, w.W.values.cols, std::span(&term, 1)});
  }
  bool known = false;
  RuleList::for_each([&]<class Rule>() {
    if constexpr (is_element_wise(kRuleInfo<Rule>))
      if (rule.rule().id == kRuleInfo<Rule>.id) {
        known = true;
        for (std::size_t from = 0; from < weights.size(); from += kMostWeights)
          launch_rows<Rule>(weights.subspan(from, std::min<std::size_t>(kMostWeights, weights.size() - from)), rule,
                            launch);
      }
  });
  check(known, "update_rows: ", rule.name(), " has no kernel: it needs a sum over the weight, or is not of the list");
}

}  // namespace forge::cuda
