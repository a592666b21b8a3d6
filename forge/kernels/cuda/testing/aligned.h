#pragma once

#include <variant>
#include <vector>

#include "forge/kernels/testing/gradients.h"

namespace forge::testing {

// Small whole numbers, of which every order of sums gives the same.
template <class Random>
auto whole_numbers(Random& random) {
  return [&random] { return static_cast<float>(random.below(9)) - 4; };
}

// A gradient whose operands' columns come in 16 bytes, as a thread takes them: a copy of each, rows 8 columns and more
// apart.
class Aligned {
 public:
  explicit Aligned(const Expression& G) : G_(G) {
    buffers_.reserve(2 * G.terms.size());  // views of them are kept
    for (const Term& term : G.terms) {
      terms_.push_back(term);
      if (auto* t = std::get_if<Outer>(&terms_.back())) t->dY = copy(t->dY), t->X = copy(t->X);
      if (auto* t = std::get_if<Rows>(&terms_.back())) t->values = copy(t->values);
      if (auto* t = std::get_if<Dense>(&terms_.back())) t->D = copy(t->D);
    }
    G_.terms = terms_;
  }
  const Expression& expression() const { return G_; }

 private:
  ConstMatrix copy(const ConstMatrix& m) {
    Buffer& to = buffers_.emplace_back(m.rows, m.cols, m.dtype, 8 - m.cols % 8);
    for (std::int64_t r = 0; r < m.rows; ++r)
      for (std::int64_t c = 0; c < m.cols; ++c) to.set(r, c, number(m, r, c));
    return to.view();
  }
  Expression G_;
  std::vector<Buffer> buffers_;
  std::vector<Term> terms_;
};

}  // namespace forge::testing
