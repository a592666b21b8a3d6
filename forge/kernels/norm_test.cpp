#include "forge/kernels/norm.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/norm_lanes.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

// The order of norm_lanes.h once more: 16 lanes a row, left to right, added as a tree, rows from top to bottom.
double defined_norm(const std::vector<float>& g, std::int64_t out, std::int64_t in) {
  double total = 0;
  for (std::int64_t r = 0; r < out; ++r) {
    std::array<double, 16> lane{};
    for (std::int64_t c = 0; c < in; ++c) {
      double x = g[static_cast<std::size_t>(r * in + c)];
      lane[static_cast<std::size_t>(c % 16)] += x * x;
    }
    auto tree = [&](auto self, std::size_t first, std::size_t step) -> double {
      if (step == 16) return lane[first];
      return self(self, first, 2 * step) + self(self, first + step, 2 * step);
    };
    total += tree(tree, 0, 1);
  }
  return total;
}

template <class Check>
void with_norms(const Expression& G, Check&& check) {
  for (Target target : available_targets())
    for (const NamedExecutor& e : executors()) {
      SCOPED_TRACE(::testing::Message() << name_of(target) << ", " << e.name);
      check(run_sum_squares({e.executor, target}, G), Place{e.executor, target});
    }
}

TEST(Norm, HasTheBitsOfTheDefinedOrder) {
  Random random(31);
  for (Shape shape : shapes())
    for (const GradientSpec& spec : gradient_specs()) {
      Gradient gradient(shape, spec, random);
      double defined = defined_norm(defined_gradient(gradient.expression()), shape.out, shape.in);
      with_norms(gradient.expression(), [&](double norm, const Place&) {
        EXPECT_TRUE(same_number(norm, defined)) << describe(shape, spec) << ": " << norm << " and " << defined;
      });
      if (HasFailure()) return;
    }
}

TEST(Norm, EqualsThatOfTheMaterializedGradient) {
  Random random(32);
  for (const GradientSpec& spec : gradient_specs()) {
    Gradient gradient({37, 515}, spec, random);
    with_norms(gradient.expression(), [&](double norm, const Place& place) {
      Buffer D = run_materialize(place, gradient.expression());
      Term dense = Dense{D.view()};
      EXPECT_TRUE(same_number(norm, run_sum_squares(place, {37, 515, std::span(&dense, 1)}))) << spec.name;
    });
  }
}

TEST(Norm, TheOrderMatters) {
  // Otherwise the tests above could not tell one order from another.
  Random random(33);
  Gradient gradient({13, 131}, {"", {{TermSpec::dense}}}, random);
  std::vector<float> g = defined_gradient(gradient.expression());
  double in_sequence = 0;
  for (float x : g) in_sequence += static_cast<double>(x) * x;
  EXPECT_NE(in_sequence, defined_norm(g, 13, 131));
}

TEST(Norm, IsFiniteExactlyWhereEveryElementIs) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  for (Shape shape : {Shape{1, 1}, Shape{3, 17}, Shape{5, 4100}})
    for (std::int64_t col : {std::int64_t{0}, shape.in / 2, shape.in - 1}) {
      Buffer D(shape.out, shape.in, DType::f32);
      for (float bad : {kInf, -kInf, kNaN}) {
        D.fill([] { return 1.f; }).set(shape.out - 1, col, bad);
        for (float term_scale : {1.f, 0.5f}) {
          Term dense = Dense{D.view(), term_scale};
          with_norms({shape.out, shape.in, std::span(&dense, 1)},
                     [&](double norm, const Place&) { EXPECT_FALSE(std::isfinite(norm)) << bad << " at " << col; });
        }
      }
      D.fill([] { return 3e38f; });
      Term dense = Dense{D.view()};
      with_norms({shape.out, shape.in, std::span(&dense, 1)}, [&](double norm, const Place&) {
        EXPECT_TRUE(std::isfinite(norm)) << "huge, but finite";
        EXPECT_NEAR(norm / (9e76 * static_cast<double>(shape.out * shape.in)), 1, 1e-6);
      });
    }
}

TEST(Norm, SeesAnOverflowOfTheScale) {
  Buffer D(2, 3, DType::f32);
  D.fill([] { return 3e38f; });
  Term dense = Dense{D.view()};
  with_norms({2, 3, std::span(&dense, 1), 2},
             [&](double norm, const Place&) { EXPECT_TRUE(std::isinf(norm)) << "G's elements are Inf"; });
}

TEST(Norm, KeepsDenormals) {
  Buffer D(1, 1, DType::f32);
  D.set(0, 0, 0x1p-149f);
  Term dense = Dense{D.view()};
  with_norms({1, 1, std::span(&dense, 1)}, [&](double norm, const Place&) { EXPECT_EQ(norm, 0x1p-298); });
}

TEST(Norm, OfNothingIsZero) {
  for (Shape shape : {Shape{0, 5}, Shape{5, 0}, Shape{0, 0}, Shape{3, 4}})
    with_norms({shape.out, shape.in, {}}, [&](double norm, const Place&) { EXPECT_EQ(norm, 0); });
}

}  // namespace
}  // namespace forge
