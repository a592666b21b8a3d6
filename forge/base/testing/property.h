#pragma once

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <sstream>
#include <string>
#include <utility>

namespace forge::testing {

// rapidcheck's verdict on a property: as many cases as asked, always the same ones, the smallest failing one printed.
template <class Testable>
::testing::AssertionResult holds(int cases, Testable&& testable) {
  rc::detail::TestParams params;
  params.seed = 20220622;
  params.maxSuccess = cases;
  const rc::detail::TestMetadata metadata;
  const auto result = rc::detail::checkTestable(std::forward<Testable>(testable), metadata, params);
  if (result.template is<rc::detail::SuccessResult>()) return ::testing::AssertionSuccess();
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  return ::testing::AssertionFailure() << text.str();
}

}  // namespace forge::testing
