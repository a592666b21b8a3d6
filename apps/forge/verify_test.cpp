#include "apps/forge/verify.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/forge/update_bench.h"

namespace forge::app {
namespace {

TEST(Verify, HoldsForOddShapesRulesAndFormats) {
  struct Case {
    const char* rule;
    Format weight, state;
  };
  for (const Case& c : {Case{"adamw", Format::fp32, Format::fp32}, Case{"sgd", Format::bf16, Format::bf16},
                        Case{"adan", Format::bf16_stochastic, Format::int8},
                        Case{"schedulefreeadamw", Format::bf16_plus8, Format::fp8}})
    for (const Finding& f :
         verify({.out = 37, .in = 131, .tokens = 9, .rule = c.rule, .weight = c.weight, .state = c.state}))
      EXPECT_TRUE(f.holds) << c.rule << ": " << f.says;
}

TEST(Verify, TheErrorOfAChainIsSomeUnits) {
  const double units = chain_error({.out = 16, .in = 64, .tokens = 256});
  EXPECT_GT(units, 0);
  EXPECT_LT(units, 256);
}

TEST(UpdateBench, HasARowForEveryPairOfFormats) {
  const std::vector<UpdateBenchRow> rows =
      bench_update({.out = 32, .in = 64, .tokens = {2, 5}, .rule = "adamw", .repetitions = 1});
  EXPECT_EQ(rows.size(), 2u * 25);
  for (const UpdateBenchRow& row : rows) EXPECT_GT(row.fused_ms * row.two_phase_ms * row.limit_ms * row.work_ms, 0);
  EXPECT_EQ(rows[0].bytes_per_parameter, 12);
  EXPECT_EQ(to_json(rows).size(), rows.size());
  EXPECT_NE(to_table(rows).find("bf16_plus8"), std::string::npos);
}

}  // namespace
}  // namespace forge::app
