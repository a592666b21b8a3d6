#include "forge/kernels/line_sums.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/base/testing/refusal.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

// In more columns than 32 shards of one piece each.
constexpr Shape kWide = {3, 8500};

// The order of line_sums.h once more, with the width of a shard in pieces.
Lines defined_lines(const std::vector<float>& g, Shape shape, std::int64_t pieces) {
  auto out = static_cast<std::size_t>(shape.out), in = static_cast<std::size_t>(shape.in);
  Lines lines = {std::vector<double>(out), std::vector<double>(in)};
  for (std::size_t r = 0; r < out; ++r) {
    std::vector<double> of_pieces;
    for (std::size_t from = 0; from < in; from += 256) {
      std::array<double, 16> lane{};
      for (std::size_t c = from; c < std::min(from + 256, in); ++c) {
        double x = g[r * in + c];
        lane[c % 16] += x * x;
        lines.of_columns[c] += x * x;
      }
      for (std::size_t half : {8, 4, 2, 1})
        for (std::size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
      of_pieces.push_back(lane[0]);
    }
    for (std::size_t p = 0; p < of_pieces.size(); p += static_cast<std::size_t>(pieces)) {
      double of_shard = 0;
      for (std::size_t k = p; k < std::min(p + static_cast<std::size_t>(pieces), of_pieces.size()); ++k)
        of_shard += of_pieces[k];
      lines.of_rows[r] += of_shard;
    }
  }
  return lines;
}

bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double x, double y) { return same_number(x, y); });
}

template <class Check>
void with_sums_of_lines(const Expression& G, Check&& check) {
  for (Target target : available_targets())
    for (const NamedExecutor& e : executors()) {
      SCOPED_TRACE(::testing::Message() << name_of(target) << ", " << e.name);
      check(run_sum_squares_of_lines({e.executor, target}, G), Place{e.executor, target});
    }
}

TEST(LineSums, HaveTheBitsOfTheDefinedOrder) {
  Random random(41);
  std::vector<Shape> all = shapes();
  all.push_back(kWide);
  for (Shape shape : all)
    for (const GradientSpec& spec : gradient_specs()) {
      Gradient gradient(shape, spec, random);
      Lines defined = defined_lines(defined_gradient(gradient.expression()), shape, shape.in > 8192 ? 2 : 1);
      with_sums_of_lines(gradient.expression(), [&](const Lines& lines, const Place&) {
        EXPECT_TRUE(same(lines.of_rows, defined.of_rows)) << describe(shape, spec);
        EXPECT_TRUE(same(lines.of_columns, defined.of_columns)) << describe(shape, spec);
      });
      if (HasFailure()) return;
    }
}

// Tokens enough that X is packed in several blocks, each of fewer columns than a weight this wide has in a shard.
TEST(LineSums, ShardsMaySpanBlocksOfPackedX) {
  constexpr Shape kShape = {2, 40000};
  Random random(42);
  Gradient gradient(kShape, {"", {{TermSpec::outer, 5000, 1, DType::bf16, DType::bf16}}}, random);
  Lines first;
  with_sums_of_lines(gradient.expression(), [&](const Lines& lines, const Place& place) {
    if (first.of_rows.empty()) {
      Buffer D = run_materialize(place, gradient.expression());
      first = defined_lines(D.numbers(), kShape, columns_of_line_shard(kShape.in) / kLinePiece);
    }
    EXPECT_TRUE(same(lines.of_rows, first.of_rows));
    EXPECT_TRUE(same(lines.of_columns, first.of_columns));
  });
}

TEST(LineSums, TheOrderMatters) {
  // Otherwise the tests above could not tell one order from another.
  Random random(43);
  Gradient gradient(kWide, {"", {{TermSpec::dense}}}, random);
  std::vector<float> g = defined_gradient(gradient.expression());
  Lines in_twos = defined_lines(g, kWide, 2), in_ones = defined_lines(g, kWide, 1);
  EXPECT_FALSE(same(in_twos.of_rows, in_ones.of_rows));
  std::reverse(g.begin(), g.end());
  Lines reversed = defined_lines(g, kWide, 2);
  std::reverse(reversed.of_columns.begin(), reversed.of_columns.end());
  EXPECT_FALSE(same(in_twos.of_columns, reversed.of_columns));
}

TEST(LineSums, CarryWhatIsNotFiniteToItsLines) {
  Buffer D(5, 300, DType::f32);
  D.fill([] { return 1.f; }).set(3, 270, std::numeric_limits<float>::infinity());
  for (float scale : {1.f, 0.5f}) {
    Term dense = Dense{D.view(), scale};
    with_sums_of_lines({5, 300, std::span(&dense, 1)}, [](const Lines& lines, const Place&) {
      for (std::size_t r = 0; r < 5; ++r) EXPECT_EQ(std::isinf(lines.of_rows[r]), r == 3);
      for (std::size_t c = 0; c < 300; ++c) EXPECT_EQ(std::isinf(lines.of_columns[c]), c == 270);
    });
  }
}

TEST(LineSums, RefuseOtherLengths) {
  std::vector<double> rows(3), columns(4);
  with_sums_of_lines({3, 4, {}}, [&](const Lines&, const Place& place) {
    for (Shape shape : {Shape{3, 5}, Shape{2, 4}})
      EXPECT_TRUE(refuses(
          [&] {
            in_context(place, {shape.out, shape.in, {}}, [&](const Context& c) {
              sum_squares_of_lines({shape.out, shape.in, {}}, rows, columns, c);
            });
          },
          {"sum_squares_of_lines", "3 rows and 4 columns"}));
  });
}

}  // namespace
}  // namespace forge
