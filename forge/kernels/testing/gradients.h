#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "forge/gradient/terms.h"
#include "forge/kernels/testing/buffer.h"

namespace forge::testing {

struct Shape {
  std::int64_t out, in;
};

// What the matrices of a term may be.
constexpr DType kOperandDTypes[] = {DType::f32, DType::bf16, DType::f16};

struct TermSpec {
  enum Kind { outer, rows, dense, minus_zeros } kind;
  std::int64_t tokens = 0;
  float scale = 1;
  DType first = DType::f32, second = DType::f32;  // dY and X; a term of one matrix has the first
};

struct GradientSpec {
  std::string name;
  std::vector<TermSpec> terms;
  float scale = 1;
};

// A gradient that owns what its terms refer to.
class Gradient {
 public:
  // The numbers come from next(), the rows of Rows terms from random.
  template <class Random, class Next>
  Gradient(Shape shape, const GradientSpec& spec, Random& random, Next&& next) : shape_(shape), scale_(spec.scale) {
    for (const TermSpec& t : spec.terms) switch (t.kind) {
        case TermSpec::outer: {
          ConstMatrix dY = add(t.tokens, shape.out, t.first, next), X = add(t.tokens, shape.in, t.second, next);
          terms_.push_back(Outer{dY, X, t.scale});
          break;
        }
        case TermSpec::rows: {
          std::int64_t tokens = shape.out > 0 ? t.tokens : 0;
          auto& index = index_.emplace_back(static_cast<std::size_t>(tokens));
          for (std::int64_t& row : index) row = random.below(shape.out);
          terms_.push_back(Rows{index.data(), add(tokens, shape.in, t.first, next), t.scale});
          break;
        }
        case TermSpec::dense:
          terms_.push_back(Dense{add(shape.out, shape.in, t.first, next), t.scale});
          break;
        case TermSpec::minus_zeros:
          terms_.push_back(Dense{add(shape.out, shape.in, t.first, [] { return -0.f; }), t.scale});
          break;
      }
  }
  template <class Random>
  Gradient(Shape shape, const GradientSpec& spec, Random& random)
      : Gradient(shape, spec, random, [&] { return random.uniform(-1, 1); }) {}

  Expression expression() const { return {shape_.out, shape_.in, terms_, scale_}; }
  const std::vector<Term>& terms() const { return terms_; }

 private:
  template <class Next>
  ConstMatrix add(std::int64_t rows, std::int64_t cols, DType dtype, Next&& next) {
    const Buffer& added = buffers_.emplace_back(rows, cols, dtype, 1 + static_cast<std::int64_t>(buffers_.size() % 3));
    const_cast<Buffer&>(added).fill(next);
    return added.view();
  }

  Shape shape_;
  float scale_;
  std::vector<Buffer> buffers_;  // a buffer's numbers stay where they are when it moves
  std::vector<std::vector<std::int64_t>> index_;
  std::vector<Term> terms_;
};

inline float number(const ConstMatrix& m, std::int64_t r, std::int64_t c) {
  return with_dtype(m.dtype, [&]<class T>(Tag<T>) { return to_float(static_cast<const T*>(m.row(r))[c]); });
}

// G's definition once more, element by element, independent of the library's loops: row-major, out × in.
inline std::vector<float> defined_gradient(const Expression& G) {
  std::vector<float> all;
  all.reserve(static_cast<std::size_t>(G.out * G.in));
  for (std::int64_t r = 0; r < G.out; ++r)
    for (std::int64_t c = 0; c < G.in; ++c) {
      float chain = -0.f;
      for (const Term& term : G.terms) {
        if (const auto* o = std::get_if<Outer>(&term))
          for (std::int64_t t = 0; t < o->X.rows; ++t)
            chain = std::fma(o->scale * number(o->dY, t, r), number(o->X, t, c), chain);
        if (const auto* e = std::get_if<Rows>(&term))
          for (std::int64_t t = 0; t < e->values.rows; ++t)
            if (e->index[t] == r) chain = std::fma(e->scale, number(e->values, t, c), chain);
        if (const auto* d = std::get_if<Dense>(&term)) chain = std::fma(d->scale, number(d->D, r, c), chain);
      }
      all.push_back(G.scale * chain);
    }
  return all;
}

// Columns [col, col + cols) and rows [row, row + rows) of the weight: the same terms seen through views.
inline std::vector<Term> shard_terms(const Expression& G, std::int64_t row, std::int64_t rows, std::int64_t col,
                                     std::int64_t cols, std::vector<std::vector<std::int64_t>>& index,
                                     std::vector<Buffer>& gathered) {
  auto view = [](ConstMatrix m, std::int64_t r, std::int64_t n, std::int64_t c, std::int64_t k) {
    const char* at = static_cast<const char*>(m.row(r)) + static_cast<std::size_t>(c) * size_of(m.dtype);
    return ConstMatrix{at, m.dtype, n, k, m.stride};
  };
  std::vector<Term> terms;
  for (const Term& term : G.terms) {
    if (const auto* o = std::get_if<Outer>(&term))
      terms.push_back(Outer{view(o->dY, 0, o->dY.rows, row, rows), view(o->X, 0, o->X.rows, col, cols), o->scale});
    if (const auto* d = std::get_if<Dense>(&term)) terms.push_back(Dense{view(d->D, row, rows, col, cols), d->scale});
    if (const auto* e = std::get_if<Rows>(&term)) {
      auto& mine = index.emplace_back();
      std::vector<std::int64_t> tokens;
      for (std::int64_t t = 0; t < e->values.rows; ++t)
        if (e->index[t] >= row && e->index[t] < row + rows) mine.push_back(e->index[t] - row), tokens.push_back(t);
      Buffer& values = gathered.emplace_back(static_cast<std::int64_t>(tokens.size()), cols, e->values.dtype);
      for (std::size_t i = 0; i < tokens.size(); ++i)
        for (std::int64_t c = 0; c < cols; ++c)
          values.set(static_cast<std::int64_t>(i), c, number(e->values, tokens[i], col + c));
      terms.push_back(Rows{mine.data(), values.view(), e->scale});
    }
  }
  return terms;
}

}  // namespace forge::testing
