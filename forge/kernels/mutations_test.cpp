// Mutations of the chain, one mistake each, go through the comparisons that the contracts use. Each must be seen on
// the data of the contracts' tables: so those tests would fail if a kernel made the mistake.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "forge/base/testing/bits.h"
#include "forge/base/testing/executors.h"
#include "forge/base/testing/random.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

using Numbers = std::vector<float>;

struct Mutation {
  const char* name;
  std::function<Numbers(const Expression&)> gradient;
};

// The terms with one of them replaced.
template <class Change>
Numbers with_outer(const Expression& G, Change&& change) {
  std::vector<Term> terms(G.terms.begin(), G.terms.end());
  for (Term& term : terms)
    if (Outer* outer = std::get_if<Outer>(&term); outer && outer->X.rows > 1) {
      change(terms, *outer);
      break;
    }
  return defined_gradient({G.out, G.in, terms, G.scale});
}

void shorten(Outer& outer, std::int64_t tokens) { outer.dY.rows = outer.X.rows = tokens; }

// One chain of other arithmetic over the tokens of the Outer terms alone; `step` makes the next sum.
template <class Step>
Numbers chain_of(const Expression& G, float start, Step&& step) {
  Numbers all;
  for (std::int64_t r = 0; r < G.out; ++r)
    for (std::int64_t c = 0; c < G.in; ++c) {
      float sum = start;
      for (const Term& term : G.terms)
        if (const auto* o = std::get_if<Outer>(&term))
          for (std::int64_t t = 0; t < o->X.rows; ++t)
            sum = step(sum, o->scale, number(o->dY, t, r), number(o->X, t, c));
      all.push_back(G.scale * sum);
    }
  return all;
}

Numbers scaled(Numbers g, float scale) {
  for (float& x : g) x *= scale;
  return g;
}

const std::vector<Mutation>& mutations() {
  static const std::vector<Mutation> all = {
      {"the first token dropped",
       [](const Expression& G) {
         return with_outer(G, [](auto&, Outer& o) {
           o.dY.data = o.dY.row(1), o.X.data = o.X.row(1);
           shorten(o, o.X.rows - 1);
         });
       }},
      {"the last token dropped",
       [](const Expression& G) { return with_outer(G, [](auto&, Outer& o) { shorten(o, o.X.rows - 1); }); }},
      {"the last token twice",
       [](const Expression& G) {
         return with_outer(G, [](auto& terms, Outer& o) {
           Outer last = o;
           last.dY.data = o.dY.row(o.dY.rows - 1), last.X.data = o.X.row(o.X.rows - 1);
           shorten(last, 1);
           terms.insert(terms.begin() + 1, last);
         });
       }},
      {"dY and X a token apart",
       [](const Expression& G) {
         return with_outer(G, [](auto&, Outer& o) {
           o.X.data = o.X.row(1);
           shorten(o, o.X.rows - 1);
         });
       }},
      {"the tokens backwards",
       [](const Expression& G) {
         return with_outer(G, [](auto&, Outer& o) {
           for (ConstMatrix* m : {&o.dY, &o.X}) m->data = m->row(m->rows - 1), m->stride = -m->stride;
         });
       }},
      {"the tail column missed",
       [](const Expression& G) {
         Numbers g = defined_gradient(G);
         for (std::int64_t r = 0; r < G.out; ++r) g[static_cast<std::size_t>((r + 1) * G.in - 1)] = 0;
         return g;
       }},
      {"the tail row missed",
       [](const Expression& G) {
         Numbers g = defined_gradient(G);
         std::fill(g.end() - G.in, g.end(), 0.f);
         return g;
       }},
      {"a multiply and an add",
       [](const Expression& G) {
         return chain_of(G, -0.f, [](float sum, float s, float dy, float x) { return sum + s * dy * x; });
       }},
      {"the term's scale after the product",
       [](const Expression& G) {
         return chain_of(G, -0.f, [](float sum, float s, float dy, float x) { return std::fma(s, dy * x, sum); });
       }},
      {"a chain in float64",
       [](const Expression& G) {
         Numbers all;
         for (std::int64_t r = 0; r < G.out; ++r)
           for (std::int64_t c = 0; c < G.in; ++c) {
             double sum = 0;
             for (const Term& term : G.terms)
               if (const auto* o = std::get_if<Outer>(&term))
                 for (std::int64_t t = 0; t < o->X.rows; ++t)
                   sum += double{o->scale * number(o->dY, t, r)} * number(o->X, t, c);
             all.push_back(G.scale * static_cast<float>(sum));
           }
         return all;
       }},
      {"the scale twice", [](const Expression& G) { return scaled(defined_gradient(G), G.scale); }},
      {"the scale not at all",
       [](const Expression& G) {
         return defined_gradient({G.out, G.in, G.terms, 1});
       }},
      {"the scale at every token",
       [](const Expression& G) {
         std::vector<Term> terms(G.terms.begin(), G.terms.end());
         for (Term& term : terms) std::visit([&](auto& t) { t.scale *= G.scale; }, term);
         return defined_gradient({G.out, G.in, terms, 1});
       }},
  };
  return all;
}

// Data like the contracts': Outer terms with a scale, on an odd shape. Order, scales and tokens all matter.
Gradient contract_data(Random& random) {
  return Gradient({13, 33}, {"", {{TermSpec::outer, 9, 0.6f}, {TermSpec::outer, 64}}, 0.37f}, random);
}

// The comparison of contract 2.
bool chain_comparison_passes(const Expression& G, const Numbers& other) {
  bool all = true;
  for (Target target : available_targets())
    all = all && same_numbers(run_materialize({executors()[1].executor, target}, G).numbers(), other);
  return all;
}

// The comparison of contract 1: update(W, S, G) with update by the other's D.
bool fused_comparison_passes(const Expression& G, const Numbers& other, Format state) {
  Random random(72);
  RuleStep rule = step_of<rules::AdamW>({.lr = 1e-2}, 2);
  Weight fused({G.out, G.in}, {Format::fp32, state}, rule.rule(), [&] { return random.uniform(-0.1, 0.1); }),
      two_phase = fused;
  SerialExecutor serial;
  Buffer D = Buffer(G.out, G.in, DType::f32).fill([i = std::size_t{0}, &other]() mutable { return other[i++]; });
  Term dense = Dense{D.view()};
  run_update({serial, best_target()}, fused, G, rule);
  run_update({serial, best_target()}, two_phase, {G.out, G.in, std::span(&dense, 1)}, rule);
  return bool(same_bits(fused, two_phase));
}

TEST(Mutations, OfTheChainAreCaughtByContract2) {
  Random random(71);
  Gradient gradient = contract_data(random);
  EXPECT_TRUE(chain_comparison_passes(gradient.expression(), defined_gradient(gradient.expression())));
  for (const Mutation& m : mutations())
    EXPECT_FALSE(chain_comparison_passes(gradient.expression(), m.gradient(gradient.expression()))) << m.name;
}

TEST(Mutations, OfTheChainAreCaughtByContract1) {
  Random random(73);
  Gradient gradient = contract_data(random);
  for (Format state : {Format::fp32, Format::bf16, Format::int8, Format::fp8}) {
    EXPECT_TRUE(fused_comparison_passes(gradient.expression(), defined_gradient(gradient.expression()), state));
    for (const Mutation& m : mutations())
      EXPECT_FALSE(fused_comparison_passes(gradient.expression(), m.gradient(gradient.expression()), state))
          << m.name << ", S " << name_of(state);
  }
}

TEST(Mutations, AZeroThatLosesItsSignIsCaught) {
  Random random(74);
  Gradient zeros({3, 5}, {"", {{TermSpec::minus_zeros}}}, random);
  Numbers positive(15, 0.f);
  EXPECT_FALSE(chain_comparison_passes(zeros.expression(), positive));
}

// Not a mutation: the encoder that operands of fp16 are made with.
TEST(Mutations, Fp16OperandsAreTheNearest) {
  auto value_of = [](std::uint32_t pattern) { return to_float(Float16{static_cast<std::uint16_t>(pattern)}); };
  for (std::uint32_t h = 0; h < 0x10000; ++h) {
    if (std::isnan(value_of(h))) continue;
    ASSERT_EQ(to_float16(value_of(h)).bits, h);
  }
  for (std::uint32_t h = 0; h + 1 < 0x7C00; ++h) {
    float tie = (value_of(h) + value_of(h + 1)) / 2;
    ASSERT_EQ(to_float16(tie).bits, h + h % 2) << "ties go to even";
    ASSERT_EQ(to_float16(std::nextafter(tie, 0.f)).bits, h);
    ASSERT_EQ(to_float16(-std::nextafter(tie, 1e9f)).bits, 0x8000 | (h + 1));
  }
  EXPECT_EQ(to_float16(std::nextafter(65520.f, 0.f)).bits, 0x7BFF);
  EXPECT_EQ(to_float16(65520).bits, 0x7C00);
  EXPECT_EQ(to_float16(-1e30f).bits, 0xFC00);
  EXPECT_TRUE(std::isnan(to_float(to_float16(std::nanf("")))));
}

TEST(Mutations, AByteBesideARowIsSeen) {
  Buffer buffer(3, 5, DType::f32);
  EXPECT_TRUE(buffer.canaries_live());
  static_cast<float*>(buffer.view().row(1))[5] = 0;
  EXPECT_FALSE(buffer.canaries_live());
  Workspace workspace(10, 3);
  EXPECT_TRUE(workspace.canaries_live());
  workspace.span().data()[10] = std::byte{0};
  EXPECT_FALSE(workspace.canaries_live());
}

}  // namespace
}  // namespace forge
