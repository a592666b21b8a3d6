#pragma once

#include <cstdint>
#include <span>
#include <variant>

#include "forge/base/matrix.h"

namespace forge {

// The gradient of one weight W (out, in) as a value that is not multiplied out:
//
//   G = scale · Σᵢ sᵢ · termᵢ        terms strictly in arrival order
//
// Each element of the sum is one sequential fp32 chain: it starts at −0 (the identity of IEEE addition), and every
// contribution, in term order and within a term in token order, is one fused multiply-add onto it. So the bits of G
// depend on the terms alone, and a prefix of the chain may be stored as a Dense term and continued.
//
// The matrices of a term may be fp32, bf16 or fp16, each of its own: they are widened exactly before anything else.

// s · dYᵀX: what a linear layer contributes. dY (T, out), X (T, in). Where s ≠ 1, s · dY is rounded to fp32 first.
struct Outer {
  ConstMatrix dY;
  ConstMatrix X;
  float scale = 1;
};

// What an embedding contributes: row index[t] receives s · values[t]. values (T, in), index (T) in [0, out).
struct Rows {
  const std::int64_t* index = nullptr;
  ConstMatrix values;
  float scale = 1;
};

// s · D, D (out, in): anything else, and what a prefix of the chain collapses to.
struct Dense {
  ConstMatrix D;
  float scale = 1;
};

using Term = std::variant<Outer, Rows, Dense>;

struct Expression {
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::span<const Term> terms;
  float scale = 1;
  const float* scale_on_device = nullptr;  // where not null, in place of scale, in the memory of the terms' device
};

// Throws Error where a term's shape, stride, dtype or index does not fit (out, in). `who` opens the sentence.
void validate(const char* who, const Expression& expression);
// The same without a look at what pointers point to, for terms in the memory of a device.
void validate_shapes(const char* who, const Expression& expression);

// Tokens of all Outer terms together: the length of the chain that is a matrix product.
std::int64_t outer_tokens(const Expression& expression);

}  // namespace forge
