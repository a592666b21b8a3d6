#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "forge/rules/list.h"

namespace forge::testing {

struct RuleCase {
  std::string name;
  std::function<RuleStep(std::int64_t step)> prepare;
};

// At least one for each rule of the list (a test checks that), with its options away from their defaults.
inline const std::vector<RuleCase>& rule_cases() {
  using rules::AdamW, rules::Sgd, rules::SgdMomentum;
  static const std::vector<RuleCase> all = {
      {"sgd", [](std::int64_t) { return Sgd::prepare({.lr = 0.1}); }},
      {"sgd with decay, maximized",
       [](std::int64_t) { return Sgd::prepare({.lr = 0.1, .weight_decay = 0.3, .maximize = true}); }},
      {"momentum, dampened",
       [](std::int64_t t) {
         return SgdMomentum::prepare({.lr = 0.1, .momentum = 0.9, .dampening = 0.2, .weight_decay = 0.01}, t);
       }},
      {"momentum, nesterov",
       [](std::int64_t t) { return SgdMomentum::prepare({.lr = 0.1, .momentum = 0.9, .nesterov = true}, t); }},
      {"adamw", [](std::int64_t t) { return AdamW::prepare({.lr = 1e-2}, t); }},
      {"adamw with a small beta1, maximized",
       [](std::int64_t t) {
         return AdamW::prepare({.lr = 1e-2, .beta1 = 0.4, .beta2 = 0.9, .weight_decay = 0.2, .maximize = true}, t);
       }},
  };
  return all;
}

}  // namespace forge::testing
