#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "forge/formats/format.h"

namespace forge::app {

struct UpdateBenchOptions {
  std::int64_t out = 4096, in = 4096;
  std::vector<std::int64_t> tokens = {8, 32, 64, 128, 512, 2048};
  std::string rule = "adamw";
  std::int64_t repetitions = 7;
};

// One pair of formats at one number of tokens; medians.
struct UpdateBenchRow {
  Format weight, state;
  std::int64_t tokens = 0;
  double fused_ms = 0;
  double two_phase_ms = 0;  // the gradient multiplied out into fp32, then applied
  double limit_ms = 0;  // the longer of: W and its moments through the rule with no gradient; 2·T·out·in at FMA peak
  double work_ms = 0;   // the sum of: W's rows through the rule as fast as from cache; 2·T·out·in at FMA peak
  double bytes_per_parameter = 0;  // of W and its moments

  double share_of_limit() const { return limit_ms / fused_ms; }
  // Above 1 where the processor does both at a time. What the rule and the codecs multiply, and what they store, a Zen
  // 4 does not do beside a product (docs/formats.md).
  double share_of_work() const { return work_ms / fused_ms; }
};

// The update of one weight, in every pair of formats: all of them in turn in every repetition, on one machine at one
// time, as torch's threads run it.
std::vector<UpdateBenchRow> bench_update(const UpdateBenchOptions& options);

nlohmann::ordered_json to_json(const std::vector<UpdateBenchRow>& rows);
// Lines for a reader; speed is that of fp32 in the same run divided by this one's.
std::string to_table(const std::vector<UpdateBenchRow>& rows);

}  // namespace forge::app
