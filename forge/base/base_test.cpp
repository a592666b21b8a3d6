#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "forge/base/function_ref.h"
#include "forge/base/matrix.h"
#include "forge/base/scalar.h"
#include "forge/base/testing/refusal.h"

namespace forge {
namespace {

TEST(DType, KnowsSizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), sizeof(float));
  EXPECT_EQ(size_of(DType::bf16), sizeof(BFloat16));
  EXPECT_EQ(size_of(DType::f16), sizeof(Float16));
  EXPECT_STREQ(name_of(DType::f32), "fp32");
  EXPECT_STREQ(name_of(DType::bf16), "bf16");
  EXPECT_STREQ(name_of(DType::f16), "fp16");
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    EXPECT_EQ(with_dtype(dtype, []<class T>(Tag<T>) { return sizeof(T); }), size_of(dtype));
  EXPECT_TRUE(is_known(DType::f16));
  EXPECT_TRUE(is_known(DType::f8));
  EXPECT_FALSE(is_known(DType{7}));
  EXPECT_TRUE(is_number(DType::f16));
  EXPECT_FALSE(is_number(DType::i8));
}

TEST(DType, RefusesOneItDoesNotKnow) {
  EXPECT_TRUE(testing::refuses([] { with_dtype(DType{7}, []<class T>(Tag<T>) {}); }, {"dtype 7"}));
}

TEST(Error, IsASentenceOfItsParts) {
  EXPECT_TRUE(
      testing::refuses([] { check(false, "linear: dY is (", 64, ", ", 2.5, ")"); }, {"linear: dY is (64, 2.5)"}));
  EXPECT_NO_THROW(check(true, "fine"));
}

TEST(Matrix, FindsARowByItsStride) {
  float f[12] = {};
  BFloat16 b[12] = {};
  Matrix m = {f, DType::f32, 3, 2, 4}, n = {b, DType::bf16, 3, 2, 4};
  EXPECT_EQ(m.row(2), f + 8);
  EXPECT_EQ(n.row(2), b + 8);
  EXPECT_EQ(ConstMatrix(m).row(1), f + 4);
}

TEST(FunctionRef, CallsWhatItWasMadeFrom) {
  int sum = 0;
  auto add = [&](int x) { return sum += x; };
  FunctionRef<int(int)> ref = add;
  FunctionRef<int(int)> copy = ref;
  EXPECT_EQ(ref(3), 3);
  EXPECT_EQ(copy(4), 7);
}

TEST(Scalar, RoundsEveryOperationOnce) {
  float a = 1 + 0x1p-12f, rounded = 1 + 0x1p-11f;  // a² = 1 + 2⁻¹¹ + 2⁻²⁴, the last bit below half an ulp
  EXPECT_EQ(fma(Scalar(a), Scalar(a), Scalar(-rounded)).x, 0x1p-24f) << "fused: the product is not rounded";
  EXPECT_EQ((Scalar(a) * Scalar(a) - Scalar(rounded)).x, 0.f) << "spelled as two: the product is rounded";
  EXPECT_EQ(sqrt(Scalar(2.f)).x, std::sqrt(2.f));
  EXPECT_TRUE(std::signbit((-Scalar(0.f)).x));
}

TEST(Scalar, TellsNumbersFromNaN) {
  auto chosen = [](float x) { return select_number(Scalar(x), Scalar::Bits(1), Scalar::Bits(2)).u; };
  EXPECT_EQ(chosen(0.f), 1u);
  EXPECT_EQ(chosen(std::numeric_limits<float>::infinity()), 1u);
  EXPECT_EQ(chosen(std::numeric_limits<float>::quiet_NaN()), 2u);
}

}  // namespace
}  // namespace forge
