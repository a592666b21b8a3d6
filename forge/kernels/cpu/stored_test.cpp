#include <gtest/gtest.h>

#include <span>
#include <string>

#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/cpu/halves.h"
#include "forge/kernels/cpu/row_operation.h"
#include "forge/rules/list.h"

namespace forge::cpu {
namespace {

// That their bits are those of ref is what the contracts' tests show, which do not see which loop ran.
TEST(StoredLoops, AreThereForEveryPairOfFormatsThatHasACodec) {
  for (Target target : targets())
    for (const FormatInfo& weight : kFormats)
      for (const FormatInfo& state : kFormats) {
        const auto w = static_cast<Format>(&weight - kFormats), s = static_cast<Format>(&state - kFormats);
        const bool coded = weight.for_weights && state.for_moments && (w != Format::fp32 || s != Format::fp32);
        SCOPED_TRACE(std::string(name_of(target)) + ", " + weight.name + ", " + state.name);
        auto find = stored_half(target).find;
        EXPECT_EQ(find(kRuleInfo<rules::AdamW>, w, s) != nullptr, coded);
        EXPECT_EQ(find(kRuleInfo<rules::SgdMomentum>, w, s) != nullptr, coded);
        EXPECT_EQ(find(kRuleInfo<rules::NAdam>, w, s), nullptr);
      }
}

TEST(StoredLoops, AreTakenWhereMomentsAreAlikeAndNothingIsCounted) {
  for (Target target : targets()) {
    auto taken = [&](Format w, Format m, Format v, bool counted) {
      auto stored = [](Format f, Sign sign) {
        const FormatInfo& info = info_of(f);
        const DType values = sign == Sign::any ? info.values : info.not_negative_values;
        return Stored(f, {nullptr, values, 1, 32, 32}, {nullptr, info.rest, 1, 32, 32});
      };
      const Stored moments[] = {stored(m, Sign::any), stored(v, Sign::not_negative)};
      RoundingCount counts[3];
      const auto rule = RuleStep::of<rules::AdamW>(rules::AdamW::prepare({}, 1));
      const auto rounding = std::span(counts).first(counted ? 3 : 0);
      return RowOperation(stored(w, Sign::any), moments, rule, 1, target, rounding).is_one_loop();
    };
    EXPECT_TRUE(taken(Format::bf16_stochastic, Format::int8, Format::int8, false));
    EXPECT_TRUE(taken(Format::fp32, Format::bf16, Format::bf16, false));
    EXPECT_FALSE(taken(Format::bf16, Format::bf16, Format::fp32, false));
    EXPECT_FALSE(taken(Format::bf16, Format::bf16, Format::bf16, true));
    EXPECT_FALSE(taken(Format::fp32, Format::fp32, Format::fp32, false)) << "they are updated in place";
  }
}

}  // namespace
}  // namespace forge::cpu
