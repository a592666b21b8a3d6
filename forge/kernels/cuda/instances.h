#pragma once

#include <algorithm>
#include <span>

#include "forge/formats/format.h"
#include "forge/rules/list.h"

namespace forge::cuda {

// What has a fused kernel: a kernel holds a product, a rule and the formats of its weight and moments, so these are the
// lists that decide how many there are. Everything else is materialize and update_rows.

// The storage pairs: single precision; bf16 weights as most train them; with 16 or 8 more bits of the weight; and with
// moments of 8 bits. Calls f.template operator()<Rule, weight format, format of the moments>() for each.
template <class Rule, class F>
void for_each_storage(F&& f) {
  f.template operator()<Rule, Format::fp32, Format::fp32>();
  f.template operator()<Rule, Format::bf16_stochastic, Format::fp32>();
  f.template operator()<Rule, Format::bf16_plus16, Format::fp32>();
  f.template operator()<Rule, Format::bf16_plus8, Format::fp32>();
  f.template operator()<Rule, Format::bf16_stochastic, Format::int8>();
}

template <class F>
void for_each_fused(F&& f) {
  for_each_storage<rules::AdamW>(f);
  for_each_storage<rules::SgdMomentum>(f);
  for_each_storage<rules::Lion>(f);
}

// With Hopper's own product (hopper.h).
template <class F>
void for_each_fused_on_hopper(F&& f) {
  for_each_storage<rules::AdamW>(f);
}

template <class Rule, Format kWeight, Format kState>
bool is_instance(const RuleInfo& rule, const Stored& W, std::span<const Stored> S) {
  return rule.id == kRuleInfo<Rule>.id && W.format == kWeight &&
         std::ranges::all_of(S, [](const Stored& s) { return s.format == kState; });
}

}  // namespace forge::cuda
