// Contract 3, rules_spell_their_fma, as it runs: a rule gives the same bits on a scalar and on every vector register;
// and the formats that it is stored in.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

// Equal numbers; a NaN equals every NaN.
bool same(const StoredBuffer& a, const StoredBuffer& b) {
  std::vector<float> x = a.numbers(), y = b.numbers();
  for (std::size_t i = 0; i < x.size(); ++i)
    if (std::bit_cast<std::uint32_t>(x[i]) != std::bit_cast<std::uint32_t>(y[i]) &&
        !(std::isnan(x[i]) && std::isnan(y[i])))
      return false;
  return true;
}
bool same(const Weight& a, const Weight& b) {
  bool equal = same(a.W, b.W);
  for (std::size_t k = 0; k < a.S.size(); ++k) equal = equal && same(a.S[k], b.S[k]);
  return equal;
}

// Does the kernel of `listed` differ from the rule in this test, on any target? Wild numbers, three steps.
template <class Rule, class Next>
bool differs(const RuleCase& listed, Storage storage, Next next) {
  constexpr Shape kShape = {31, 67};
  for (Target target : available_targets()) {
    SerialExecutor serial;
    Weight kernel(kShape, storage, listed.prepare(1).rule(), next), scalar = kernel;
    for (std::int64_t step = 1; step <= 3; ++step) {
      Buffer D = Buffer(kShape.out, kShape.in, DType::f32).fill(next);
      Term dense = Dense{D.view()};
      RuleStep prepared = listed.prepare(step);
      run_update({serial, target}, kernel, {kShape.out, kShape.in, std::span(&dense, 1)}, prepared);
      apply<Rule>(scalar, D.numbers(), *static_cast<const typename Rule::Step*>(prepared.constants()));
      if (!same(kernel, scalar)) return true;
    }
  }
  return false;
}

template <class F>
void for_each_case_of_a_rule(F&& f) {
  RuleList::for_each([&]<class Rule>() {
    for (const RuleCase& c : rule_cases())
      if (c.prepare(1).template get<Rule>()) f.template operator()<Rule>(c);
  });
}

TEST(RuleBits, AreThoseOfTheScalarOnEveryTarget) {
  Random random(41);
  for_each_case_of_a_rule([&]<class Rule>(const RuleCase& c) {
    for (const Storage& storage : storages()) {
      SCOPED_TRACE(::testing::Message() << c.name << ", " << storage);
      EXPECT_FALSE(differs<Rule>(c, storage, [&] { return random.uniform(-1, 1); })) << "ordinary numbers";
      EXPECT_FALSE(differs<Rule>(c, storage, [&] { return random.wild(); })) << "denormal, zero, huge";
      EXPECT_FALSE(differs<Rule>(c, storage, [&] { return random.any(); })) << "any pattern, NaN and Inf too";
    }
  });
}

// The same formulas with a multiply and an add where a rule says fma.
struct UnfusedSgd : rules::Sgd {
  template <class V>
  static void update(V& w, V g, V*, const Step& s) {
    if (s.maximize) g = -g;
    g = V(s.weight_decay) * w + g;
    w = V(s.minus_lr) * g + w;
  }
};
struct UnfusedMomentum : rules::SgdMomentum {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    V& b = moment[0];
    if (s.maximize) g = -g;
    g = V(s.weight_decay) * w + g;
    b = V(s.add) * g + V(s.keep) * b;
    V d = s.nesterov ? V(s.momentum) * b + g : b;
    w = V(s.minus_lr) * d + w;
  }
};
struct UnfusedSecondMoment : rules::AdamW {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    V old = moment[1];
    rules::AdamW::update(w, g, moment, s);
    moment[1] = V(s.moments.one_minus_beta2) * g * g + V(s.moments.beta2) * old;
  }
};
struct UnfusedWeight : rules::AdamW {
  template <class V>
  static void update(V& w, V g, V* moment, const Step& s) {
    V old = w;
    rules::AdamW::update(w, g, moment, s);
    w = V(s.decay.keep) * old - V(s.step_size) * moment[0] / fma(sqrt(moment[1]), V(s.inverse_sqrt_c2), V(s.eps));
  }
};

TEST(RuleBits, MutationsAreCaught) {
  Random random(42);
  auto caught = [&]<class Rule, class Mutant>() {
    bool found = false;
    for (const RuleCase& c : rule_cases())
      if (c.prepare(1).template get<Rule>())
        found = found || differs<Mutant>(c, Storage{}, [&] { return random.uniform(-1, 1); });
    return found;
  };
  EXPECT_TRUE((caught.operator()<rules::Sgd, UnfusedSgd>()));
  EXPECT_TRUE((caught.operator()<rules::SgdMomentum, UnfusedMomentum>()));
  EXPECT_TRUE((caught.operator()<rules::AdamW, UnfusedSecondMoment>()));
  EXPECT_TRUE((caught.operator()<rules::AdamW, UnfusedWeight>()));
  EXPECT_FALSE((caught.operator()<rules::AdamW, rules::AdamW>()));
}

TEST(FormatBits, EncodingIsThatOfTheScalarOnEveryTarget) {
  Random random(43);
  // Every upper half with the lower halves around its ties: 65536 × 8 numbers, and a ragged row.
  for (Shape shape : {Shape{128, 4096}, Shape{1, 4095}, Shape{3, 7}}) {
    Buffer D(shape.out, shape.in, DType::f32);
    std::uint32_t i = 0;
    D.fill([&] {
      constexpr std::uint32_t kLow[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
      std::uint32_t low = i % 8 < 6 ? kLow[i % 8] : static_cast<std::uint32_t>(random.below(0x10000));
      return std::bit_cast<float>((i++ / 8) << 16 | low);
    });
    Term dense = Dense{D.view()};
    Expression G = {shape.out, shape.in, std::span(&dense, 1)};
    Buffer scalar = Buffer(shape.out, shape.in, DType::bf16, 5);
    for (std::int64_t r = 0; r < shape.out; ++r)
      for (std::int64_t c = 0; c < shape.in; ++c) scalar.set(r, c, D.at(r, c));
    for (Target target : available_targets())
      EXPECT_EQ(run_materialize({executors()[1].executor, target}, G, DType::bf16).bytes(), scalar.bytes())
          << name_of(target);
  }
}

TEST(FormatBits, EveryPatternOfAnOperandIsWidenedExactly) {
  for (DType dtype : {DType::bf16, DType::f16}) {
    Buffer D(16, 4096, dtype), ones = Buffer(1, 1, DType::f32).fill([] { return 1.f; });
    for (std::uint32_t i = 0; i < 0x10000; ++i) static_cast<std::uint16_t*>(D.view().row(i / 4096))[i % 4096] = i;
    std::vector<std::int64_t> index = {0};
    for (Target target : available_targets())
      for (std::int64_t r = 0; r < 16; ++r) {
        ConstMatrix row = {D.view().row(r), dtype, 1, 4096, 4096};
        std::vector<float> widened;
        for (std::int64_t c = 0; c < 4096; ++c) widened.push_back(number(row, 0, c));
        for (const Term& term : {Term(Outer{ones.view(), row}), Term(Rows{index.data(), row}), Term(Dense{row})}) {
          Expression G = {1, 4096, std::span(&term, 1)};
          Buffer back = run_materialize({executors()[0].executor, target}, G);
          EXPECT_TRUE(same_numbers(back.numbers(), widened)) << name_of(dtype) << ", " << name_of(target);
        }
      }
  }
}

}  // namespace
}  // namespace forge
