#include "forge/kernels/materialize.h"

#include "forge/kernels/check.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

void materialize(const Matrix& D, const Expression& G, const Context& context) {
  validate("materialize", G);
  check_materialized("materialize", D, G);
  check_context("materialize", G, context);
  return context.target == Target::ref ? ref::materialize(D, G, context) : cpu::materialize(D, G, context);
}

}  // namespace forge
