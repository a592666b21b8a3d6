#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "forge/base/error.h"
#include "forge/base/inline.h"
#include "forge/base/sign.h"

// The words that a rule is written in. A rule is a struct with
//
//   using Options = …;                       what the user sets, with fields() (below)
//   static constexpr const char* kName;      of this kernel; several rules may share Options
//   static constexpr std::array kMoments;    what it keeps for each weight, of type Moment, in order
//   struct Step;                             the constants of one update, all fp32 or bool
//   static Step prepare(const Options&, const Progress&);     in double on the host, rounded once
//   template <class V> static void update(V& w, V g, V* moments, const Step&);
//
// and, where it needs them, `fits(options)`: these options are this rule's; kScalars, the names of what it remembers
// beside its moments, with `next(options, progress)`, which brings them to the next update.
//
// A rule that has to know a sum over the whole weight before it moves it takes passes, each a rule of its own that is
// run over the weight:
//
//   static constexpr int kSums;              numbers that each element gives; their squares are summed over the weight
//   template <class V> static void update(V& w, V g, V* moments, const Step&, V* numbers);
//   using Next = …;                          the rule of the pass behind it, with the same first moments
//   FORGE_INLINE static Next::Step next_pass(const Step&, const Sums&);    has no side effect; on a GPU it runs there
//
// Step then also has what next_pass needs, which may be a double. A pass says what it leaves alone: kWritesWeight,
// kWritesMoments or kReadsGradient is false. Where it has
//
//   static NewtonSchulz orthogonalized(const Step&);
//
// w is no weight but a new fp32 matrix of its shape, which is made orthogonal before the next pass has it as g.
//
// A rule whose first two moments have one number for each row and for each column brings them up to date before its
// passes, which only read them, from the sums of g² over rows and columns:
//
//   static Step with_lines(const Step&, const LineSums& squares, std::span<float> rows, std::span<float> columns);
//
// And what a rule may say of the weights it is for: kTakes; a Step that knows the weight,
// `for_weight(step, WeightTraits)`; another rule for vectors, OfVector, with the `for_vector(step, WeightTraits)` that
// gives its Step.
namespace forge {

// What a moment has a number for: each element of the weight, or each of its rows or columns; these are kept in fp32.
enum class Extent : std::uint8_t { element, row, column };

struct Moment {
  const char* key;  // its name in a state_dict, as torch.optim or the authors of the rule have it
  Sign sign = Sign::any;
  Extent extent = Extent::element;

  // The shape of what is kept for a weight of (out, in).
  constexpr std::int64_t rows(std::int64_t out) const { return extent == Extent::column ? 1 : out; }
  constexpr std::int64_t cols(std::int64_t in) const { return extent == Extent::row ? 1 : in; }
};

// Shapes of weights that a rule is defined for; all but `any` in row-major order.
enum class Takes : std::uint8_t { any, matrices, vectors_and_matrices };

struct WeightTraits {
  std::int64_t dimensions = 2;
  double epsilon = 0x1p-23;  // of its dtype, as numpy.finfo has it
};

constexpr int kMaxScalars = 2;

// How far the updates of one weight are.
struct Progress {
  std::int64_t step = 1;                      // the number of this update
  std::array<double, kMaxScalars> scalars{};  // of the rule, as of this update; nothing at step 1

  Progress(std::int64_t s = 1) : step(s) {}  // NOLINT: a step without scalars is a progress
};

constexpr int kMaxSums = 2;

// What a pass has summed up over a weight of (out, in), in fp64.
struct Sums {
  std::array<double, kMaxSums> of_squares{};
  std::int64_t out = 0, in = 0;

  // The mean of the squares of number k.
  FORGE_INLINE double mean(int k) const {
    return of_squares[static_cast<std::size_t>(k)] / (static_cast<double>(out) * static_cast<double>(in));
  }
};

// Sums of squares over each row and each column of a gradient, as kernels/line_sums.h has them.
struct LineSums {
  std::span<const double> of_rows, of_columns;
};

// The quintic iteration towards the orthogonal factor of a matrix X with singular values at most 1, `steps` times:
//   X ← a X + (b XXᵀ + c (XXᵀ)²) X.     X begins as the matrix / max(its Frobenius norm, eps).
struct NewtonSchulz {
  float a, b, c, eps;
  int steps;
};

// What a rule's pass gives and leaves alone: constants, which code for any instruction set may use.
template <class Rule>
struct PassOf {
  static constexpr int kSums = [] {
    if constexpr (requires { Rule::kSums; }) return Rule::kSums;
    return 0;
  }();
  static constexpr bool kReadsGradient = !requires { requires !Rule::kReadsGradient; };
  static constexpr bool kWritesWeight = !requires { requires !Rule::kWritesWeight; };
  static constexpr bool kWritesMoments = !requires { requires !Rule::kWritesMoments; };
};

// One element through a rule. `numbers`: as many as the rule has sums.
template <class Rule, class V>
FORGE_INLINE void update_element(V& w, V g, V* moments, const typename Rule::Step& step, V* numbers) {
  if constexpr (PassOf<Rule>::kSums > 0)
    Rule::update(w, g, moments, step, numbers);
  else
    Rule::update(w, g, moments, step);
}

enum class Bounds : std::uint8_t {
  none,
  not_negative,
  not_positive,
  positive,
  below_one,
  up_to_one,
  inside_one,
  one_or_more,
  above_one
};

// One option: its name, its bounds and, where torch.optim has it in a tuple, the tuple's name and the place in it.
struct Field {
  const char* name;
  Bounds bounds = Bounds::none;
  const char* tuple = nullptr;
  int place = 0;
};

// Throws Error, "AdamW: beta1 is 1.5; give a value in [0, 1)", where a number is outside its bounds.
void check_bounds(const char* who, const Field& field, double value);

// Options have a constant kName, the optimizer's, and
//   static void fields(auto& options, auto&& f)    which calls f(Field, value) for each, a double, bool or int
template <class Options>
void check_options(const Options& options, const Progress& progress) {
  Options::fields(options, [](const Field& field, const auto& value) {
    if constexpr (!std::is_same_v<std::remove_cvref_t<decltype(value)>, bool>)
      check_bounds(Options::kName, field, value);
  });
  check(progress.step >= 1, Options::kName, ": step is ", progress.step, "; the first update is step 1");
}

// The fields that Adam's relatives share.
void adam_fields(auto& o, auto&& f) {
  f(Field{"lr", Bounds::not_negative}, o.lr);
  f(Field{"beta1", Bounds::below_one, "betas", 0}, o.beta1);
  f(Field{"beta2", Bounds::below_one, "betas", 1}, o.beta2);
  f(Field{"eps", Bounds::not_negative}, o.eps);
  f(Field{"weight_decay", Bounds::not_negative}, o.weight_decay);
}

// 1 − βᵗ: what an average of t terms with weights (1 − β) βⁱ falls short of.
inline double bias_correction(double beta, std::int64_t t) { return 1 - std::pow(beta, static_cast<double>(t)); }

// m ← m + (1 − β)(g − m) in one rounding less, from the nearer end, as torch.lerp does: from g where β ≤ 1/2.
struct Lerp {
  float weight;
  bool from_end;
  Lerp() = default;
  // towards: how far to go from start to end, in [0, 1].
  explicit Lerp(double towards)
      : weight(static_cast<float>(towards < 0.5 ? towards : towards - 1)), from_end(towards >= 0.5) {}
};

template <class V>
FORGE_INLINE V lerp(V start, V end, const Lerp& l) {
  return fma(V(l.weight), end - start, l.from_end ? end : start);
}

// −1, 0 or 1; 0 of a NaN, as torch.sign has it.
template <class V>
FORGE_INLINE V sign_of(V x) {
  return select(x > V(0.f), V(1.f), select(x < V(0.f), V(-1.f), V(0.f)));
}

// Weight decay of either kind, without a branch: g ← g + l2 · w before the step, or w ← keep · w with it.
struct Decay {
  float l2, keep;
  Decay() = default;
  Decay(double lr, double weight_decay, bool decoupled)
      : l2(static_cast<float>(decoupled ? 0 : weight_decay)),
        keep(static_cast<float>(decoupled ? 1 - lr * weight_decay : 1)) {}
};

}  // namespace forge
