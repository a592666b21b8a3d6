#include "forge/kernels/cuda/arguments.h"

namespace forge::cuda {
namespace {

TermArguments term_arguments(const Outer& t) {
  return {TermKind::outer,   t.scale, arguments_of(t.dY, t.scale),
          arguments_of(t.X), nullptr, static_cast<int>(t.X.rows)};
}
TermArguments term_arguments(const Rows& t) {
  return {TermKind::rows, t.scale, arguments_of(t.values), {}, t.index, static_cast<int>(t.values.rows)};
}
TermArguments term_arguments(const Dense& t) { return {TermKind::dense, t.scale, arguments_of(t.D), {}, nullptr, 0}; }

// Rows, columns and tokens are counted in 32 bits, and a tile may reach beyond the last.
void check_extent(const char* who, const char* what, std::int64_t n) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  check(n <= kMost, who, ": ", n, " ", what, ", of which kernels count at most ", kMost);
}

}  // namespace

void check_expression(const char* who, const Expression& G) {
  validate_shapes(who, G);
  check_extent(who, "rows", G.out);
  check_extent(who, "columns", G.in);
  for (const Term& term : G.terms) {
    if (const Outer* outer = std::get_if<Outer>(&term)) check_extent(who, "tokens", outer->X.rows);
    if (const Rows* rows = std::get_if<Rows>(&term)) check_extent(who, "tokens", rows->values.rows);
  }
  check(G.terms.size() <= kMostTerms, who, ": the gradient has ", G.terms.size(), " terms and a kernel takes ",
        kMostTerms, "; materialize some of them first");
}

ChainArguments chain_arguments(const Expression& G, const OnDevice& numbers) {
  ChainArguments all = {
      static_cast<int>(G.out), static_cast<int>(G.in), static_cast<int>(G.terms.size()), G.scale, numbers, {}};
  for (std::size_t i = 0; i < G.terms.size(); ++i)
    all.term[i] = std::visit([](const auto& t) { return term_arguments(t); }, G.terms[i]);
  return all;
}

}  // namespace forge::cuda
