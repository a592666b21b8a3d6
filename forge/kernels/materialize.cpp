#include "forge/kernels/materialize.h"

#include "forge/kernels/check.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

void materialize(const Matrix& D, const Expression& G, const Context& context) {
  validate("materialize", G);
  check_matrix("materialize", "D", D, G.out, G.in);
  check(D.dtype == DType::f32 || D.dtype == DType::bf16, "materialize: D is ", name_of(D.dtype),
        ", which only the gradient's operands may be; store it as fp32 or bf16");
  check_context("materialize", G, context);
  return context.target == Target::ref ? ref::materialize(D, G, context) : cpu::materialize(D, G, context);
}

}  // namespace forge
