#include "forge/gradient/terms.h"

namespace forge {
namespace {

void check_operand(const char* who, const char* what, const ConstMatrix& m, std::int64_t rows, std::int64_t cols) {
  check_matrix(who, what, m, rows, cols);
  check(is_number(m.dtype), who, ": ", what, " is ", name_of(m.dtype), ", expected fp32, bf16 or fp16");
}

void check_term(const char* who, const Expression& e, const Outer& t) {
  check_operand(who, "dY", t.dY, t.X.rows, e.out);
  check_operand(who, "X", t.X, t.dY.rows, e.in);
}

void check_term(const char* who, const Expression& e, const Rows& t) {
  check_operand(who, "Rows values", t.values, t.values.rows, e.in);
  check(t.index != nullptr || t.values.rows == 0, who, ": Rows has ", t.values.rows, " values and no index");
}

void check_term(const char* who, const Expression& e, const Dense& t) {
  check_operand(who, "Dense term", t.D, e.out, e.in);
}

void check_index(const char* who, const Expression& e, const Rows& t) {
  for (std::int64_t i = 0; i < t.values.rows; ++i)
    check(t.index[i] >= 0 && t.index[i] < e.out, who, ": Rows index ", t.index[i], " at token ", i,
          " is outside the weight's ", e.out, " rows");
}

}  // namespace

void validate_shapes(const char* who, const Expression& e) {
  check(e.out >= 0 && e.in >= 0, who, ": the weight's shape is (", e.out, ", ", e.in, ")");
  for (const Term& term : e.terms) std::visit([&](const auto& t) { check_term(who, e, t); }, term);
}

void validate(const char* who, const Expression& e) {
  validate_shapes(who, e);
  check(e.scale_on_device == nullptr, who, ": the scale is in a device's memory, and the terms are in the host's");
  for (const Term& term : e.terms)
    if (const Rows* rows = std::get_if<Rows>(&term)) check_index(who, e, *rows);
}

std::int64_t outer_tokens(const Expression& e) {
  std::int64_t tokens = 0;
  for (const Term& term : e.terms)
    if (const Outer* outer = std::get_if<Outer>(&term)) tokens += outer->X.rows;
  return tokens;
}

}  // namespace forge
