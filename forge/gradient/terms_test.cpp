#include "forge/gradient/terms.h"

#include <gtest/gtest.h>

#include <vector>

#include "forge/base/testing/refusal.h"

namespace forge {
namespace {

// A matrix of which only the shape matters.
ConstMatrix shaped(std::int64_t rows, std::int64_t cols) {
  static const float number = 0;
  return {&number, DType::f32, rows, cols, cols};
}

TEST(Terms, ACorrectExpressionIsAccepted) {
  const std::int64_t index[] = {0, 3, 3};
  std::vector<Term> terms = {Outer{shaped(5, 4), shaped(5, 6)}, Outer{shaped(0, 4), shaped(0, 6)},
                             Rows{index, shaped(3, 6)}, Rows{nullptr, shaped(0, 6)}, Dense{shaped(4, 6)}};
  EXPECT_NO_THROW(validate("test", {4, 6, terms}));
  EXPECT_NO_THROW(validate("test", {4, 6, {}}));
  EXPECT_NO_THROW(validate("test", {0, 0, {}}));
}

TEST(Terms, MatricesWithoutElementsNeedNoData) {
  std::vector<Term> terms = {Outer{{nullptr, DType::f32, 0, 4, 4}, {nullptr, DType::f32, 0, 6, 6}}};
  EXPECT_NO_THROW(validate("test", {4, 6, terms}));
}

TEST(Terms, AWrongTermIsNamedByTheCallerAndItsShape) {
  const std::int64_t index[] = {0, 4};
  struct Row {
    Term term;
    std::vector<std::string> words;
  };
  for (const Row& r : std::vector<Row>{
           {Outer{shaped(5, 3), shaped(5, 6)}, {"linear", "dY is (5, 3)", "(5, 4)"}},
           {Outer{shaped(5, 4), shaped(5, 7)}, {"linear", "X is (5, 7)", "(5, 6)"}},
           {Outer{shaped(5, 4), shaped(4, 6)}, {"linear", "dY is (5, 4)", "(4, 4)"}},
           {Outer{{nullptr, DType::f32, 5, 4, 4}, shaped(5, 6)}, {"linear", "dY (5, 4) has no data"}},
           {Rows{index, shaped(2, 5)}, {"linear", "Rows values is (2, 5)", "(2, 6)"}},
           {Rows{index, shaped(2, 6)}, {"linear", "Rows index 4 at token 1", "4 rows"}},
           {Dense{shaped(6, 4)}, {"linear", "Dense term is (6, 4)", "(4, 6)"}},
       }) {
    std::vector<Term> terms = {Dense{shaped(4, 6)}, r.term};
    EXPECT_TRUE(testing::refuses([&] { validate("linear", {4, 6, terms}); }, r.words));
  }
  EXPECT_TRUE(testing::refuses([&] { validate("linear", {4, -6, {}}); }, {"(4, -6)"}));
}

TEST(Terms, CountsTheTokensOfOuterTermsOnly) {
  const std::int64_t index[] = {0, 1};
  std::vector<Term> terms = {Outer{shaped(5, 4), shaped(5, 6)}, Rows{index, shaped(2, 6)}, Dense{shaped(4, 6)},
                             Outer{shaped(7, 4), shaped(7, 6)}};
  EXPECT_EQ(outer_tokens({4, 6, terms}), 12);
  EXPECT_EQ(outer_tokens({4, 6, {}}), 0);
}

}  // namespace
}  // namespace forge
