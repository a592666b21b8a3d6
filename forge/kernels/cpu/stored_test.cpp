#include <gtest/gtest.h>

#include <string>

#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/cpu/halves.h"
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

}  // namespace
}  // namespace forge::cpu
