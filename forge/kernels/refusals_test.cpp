// Every wrong input throws forge::Error with a sentence that names shapes, and nothing has been written.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "forge/base/testing/executors.h"
#include "forge/base/testing/refusal.h"
#include "forge/kernels/testing/harness.h"

namespace forge {
namespace {

using namespace forge::testing;

// A correct call, for a refusal to spoil.
struct Call {
  Buffer w{4, 6, DType::f32}, m{4, 6, DType::bf16}, v{4, 6, DType::bf16};
  Buffer dY{3, 4, DType::f32}, X{3, 6, DType::f32}, values{2, 6, DType::f32}, D{4, 6, DType::f32};
  std::vector<std::int64_t> index = {0, 3};
  Matrix W = w.view();
  std::vector<Stored> S = {m.view(), v.view()};
  Format format = Format::fp32;
  Matrix low;
  Outer outer{dY.view(), X.view()};
  Rows rows{index.data(), values.view()};
  Dense dense{D.view()};
  std::int64_t out = 4, in = 6;
  RuleStep rule = step_of<rules::AdamW>({}, 1);
  std::size_t missing_bytes = 0;

  template <class F>
  void with_context(Target target, F&& f) {
    std::vector<Term> terms = {outer, rows, dense};
    Expression G = {out, in, terms};
    SerialExecutor serial;
    std::vector<Term> fine = {Outer{dY.view(), X.view()}, Rows{index.data(), values.view()}, Dense{D.view()}};
    Workspace workspace(workspace_bytes({4, 6, fine}, 1, target) - missing_bytes);
    f(G, Context{serial, workspace.span(), target});
  }
  bool nothing_written() const {
    Buffer zero32(4, 6, DType::f32), zero16(4, 6, DType::bf16);
    return w.bytes() == zero32.bytes() && m.bytes() == zero16.bytes() && v.bytes() == zero16.bytes();
  }
};

struct Refusal {
  std::function<void(Call&)> spoil;
  std::vector<std::string> words;
};

// What is wrong with the gradient: every operation refuses it.
const std::vector<Refusal>& wrong_gradients() {
  static const std::vector<Refusal> all = {
      {[](Call& c) { c.outer.dY.cols = 5; }, {"dY", "(3, 5)", "(3, 4)"}},
      {[](Call& c) { c.outer.dY.rows = 2; }, {"dY", "(2, 4)", "(3, 4)"}},
      {[](Call& c) { c.outer.X.cols = 7; }, {"X", "(3, 7)", "(3, 6)"}},
      {[](Call& c) { c.outer.dY.stride = 3; }, {"dY", "stride of 3", "4 columns"}},
      {[](Call& c) { c.outer.X.stride = -6; }, {"X", "stride of -6", "6 columns"}},
      {[](Call& c) { c.outer.X.data = nullptr; }, {"X", "(3, 6)", "no data"}},
      {[](Call& c) { c.outer.dY.rows = c.outer.X.rows = -1; }, {"-1"}},
      {[](Call& c) { c.outer.X.dtype = DType{9}; }, {"dtype"}},
      {[](Call& c) { c.rows.values.cols = 5; }, {"Rows values", "(2, 5)", "(2, 6)"}},
      {[](Call& c) { c.rows.values.stride = 5; }, {"Rows values", "stride of 5"}},
      {[](Call& c) { c.rows.values.data = nullptr; }, {"Rows values", "no data"}},
      {[](Call& c) { c.rows.values.rows = -1; }, {"-1"}},
      {[](Call& c) { c.rows.index = nullptr; }, {"index"}},
      {[](Call& c) { c.index[1] = 4; }, {"Rows index 4", "token 1", "4 rows"}},
      {[](Call& c) { c.index[0] = -1; }, {"Rows index -1", "token 0"}},
      {[](Call& c) { c.rows.values.dtype = DType{9}; }, {"dtype"}},
      {[](Call& c) { c.dense.D.rows = 3; }, {"Dense", "(3, 6)", "(4, 6)"}},
      {[](Call& c) { c.dense.D.cols = 60; }, {"Dense", "(4, 60)", "(4, 6)"}},
      {[](Call& c) { c.dense.D.stride = 0; }, {"Dense", "stride of 0"}},
      {[](Call& c) { c.dense.D.data = nullptr; }, {"Dense", "no data"}},
      {[](Call& c) { c.dense.D.dtype = DType{9}; }, {"dtype"}},
      {[](Call& c) { c.out = -4; }, {"(-4, 6)"}},
      {[](Call& c) { c.missing_bytes = 1; }, {"workspace", "bytes"}},
  };
  return all;
}

const std::vector<Refusal>& wrong_weights() {
  static const std::vector<Refusal> all = {
      {[](Call& c) { c.W.rows = 5; }, {"W", "(5, 6)", "(4, 6)"}},
      {[](Call& c) { c.W.cols = 4; }, {"W", "(4, 4)", "(4, 6)"}},
      {[](Call& c) { c.W.stride = 5; }, {"W", "stride of 5", "6"}},
      {[](Call& c) { c.W.dtype = DType{9}; }, {"dtype"}},
      {[](Call& c) { c.W.dtype = DType::f16; }, {"W", "fp16", "fp32"}},
      {[](Call& c) { c.W.data = nullptr; }, {"W", "no data"}},
      {[](Call& c) { c.S.pop_back(); }, {"adamw", "2", "1"}},
      {[](Call& c) { c.S.push_back(c.S[0]); }, {"adamw", "2", "3"}},
      {[](Call& c) { c.rule = step_of<rules::Sgd>({}, 1); }, {"sgd", "0", "2"}},
      {[](Call& c) { c.S[1].values.rows = 3; }, {"exp_avg_sq", "(3, 6)", "(4, 6)"}},
      {[](Call& c) { c.S[0].values.stride = 2; }, {"exp_avg", "stride of 2"}},
      {[](Call& c) { c.S[1].values.cols = 3; }, {"exp_avg_sq", "(4, 3)"}},
      {[](Call& c) { c.S[0].format = Format::fp32; }, {"exp_avg", "bf16", "fp32"}},
      {[](Call& c) { c.S[0].format = Format{9}; }, {"exp_avg", "format 9"}},
      {[](Call& c) {
         c.S[0].format = Format::bf16_plus8, c.S[0].rest = {c.w.view().data, DType::i8, 4, 6, 6};
       },
       {"exp_avg", "bf16_plus8", "for weights"}},
      {[](Call& c) { c.S[0].format = Format::int8; }, {"exp_avg", "bf16", "int8"}},
      {[](Call& c) { c.S[0].values.dtype = DType{9}; }, {"dtype"}},
      {[](Call& c) { c.S[0].values.dtype = DType::f16; }, {"exp_avg", "fp16", "bf16"}},
      {[](Call& c) { c.S[1].values.data = nullptr; }, {"exp_avg_sq", "no data"}},
      {[](Call& c) {
         c.S[0].format = Format::int8;
         c.S[0].values.dtype = DType::i8;
         c.S[0].rest = {c.v.view().data, DType::bf16, 4, 2, 2};
       },
       {"exp_avg's scales", "(4, 2)", "(4, 1)"}},
      {[](Call& c) {
         c.S[1].format = Format::int8;
         c.S[1].values.dtype = DType::i8;
       },
       {"exp_avg_sq", "int8", "uint8"}},
      {[](Call& c) { c.format = Format::int8, c.W.dtype = DType::i8; }, {"W", "scales", "(0, 0)"}},
      {[](Call& c) { c.format = Format::bf16_plus8, c.W.dtype = DType::bf16; }, {"W's lower part", "(0, 0)", "(4, 6)"}},
      {[](Call& c) {
         c.format = Format::bf16_plus8;
         c.W.dtype = DType::bf16;
         c.low = {c.v.view().data, DType::i16, 4, 6, 6};
       },
       {"W's lower part", "int16", "int8"}},
  };
  return all;
}

using Operation = std::function<void(Call&, const Expression&, const Context&)>;

void expect_refusals(const char* who, const std::vector<Refusal>& refusals, const Operation& operation) {
  for (Target target : available_targets())
    for (std::size_t i = 0; i < refusals.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << who << ", " << name_of(target) << ", row " << i << ", "
                                        << refusals[i].words.front());
      Call call;
      refusals[i].spoil(call);
      auto words = refusals[i].words;
      words.push_back(who);
      auto run = [&] {
        call.with_context(target, [&](const Expression& G, const Context& c) { operation(call, G, c); });
      };
      if (!survives(run)) {
        ADD_FAILURE() << "nothing is thrown, and it crashes";
        continue;
      }
      EXPECT_TRUE(refuses(run, words));
      EXPECT_TRUE(call.nothing_written());
    }
}

TEST(Refusals, UpdateNamesWhatIsWrong) {
  auto call_update = [](Call& c, const Expression& G, const Context& context) {
    update(Stored(c.format, c.W, c.low), c.S, G, c.rule, context);
  };
  expect_refusals("update", wrong_gradients(), call_update);
  expect_refusals("update", wrong_weights(), call_update);
}

TEST(Refusals, MaterializeNamesWhatIsWrong) {
  auto call = [](Call& c, const Expression& G, const Context& context) { materialize(c.W, G, context); };
  expect_refusals("materialize", wrong_gradients(), call);
  std::vector<Refusal> destinations = {
      {[](Call& c) { c.W.rows = 5; }, {"D", "(5, 6)", "(4, 6)"}},
      {[](Call& c) { c.W.stride = 5; }, {"D", "stride of 5"}},
      {[](Call& c) { c.W.dtype = DType{9}; }, {"dtype"}},
      {[](Call& c) { c.W.dtype = DType::f16; }, {"D", "fp16", "fp32 or bf16"}},
      {[](Call& c) { c.W.data = nullptr; }, {"D", "no data"}},
  };
  expect_refusals("materialize", destinations, call);
}

TEST(Refusals, SumSquaresNamesWhatIsWrong) {
  expect_refusals("sum_squares", wrong_gradients(),
                  [](Call&, const Expression& G, const Context& context) { sum_squares(G, context); });
}

TEST(Refusals, ATargetOfAnotherMachineIsRefused) {
  for (Target target : {Target::avx2, Target::avx512, Target::neon}) {
    auto here = available_targets();
    if (std::find(here.begin(), here.end(), target) != here.end()) continue;
    Call call;
    SerialExecutor serial;
    std::vector<std::byte> workspace(1 << 20);
    std::vector<Term> terms = {call.dense};
    EXPECT_TRUE(refuses(
        [&] {
          update(call.W, call.S, {4, 6, terms}, call.rule, {serial, workspace, target});
        },
        {"update", name_of(target)}));
  }
}

TEST(Refusals, TheUnspoiledCallIsAccepted) {
  for (Target target : available_targets()) {
    Call call;
    call.with_context(target, [&](const Expression& G, const Context& c) {
      EXPECT_NO_THROW(update(call.W, call.S, G, call.rule, c));
      EXPECT_NO_THROW(materialize(call.W, G, c));
      EXPECT_NO_THROW(sum_squares(G, c));
    });
  }
}

}  // namespace
}  // namespace forge
