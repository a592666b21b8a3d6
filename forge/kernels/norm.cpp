#include "forge/kernels/norm.h"

#include "forge/kernels/check.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

double sum_squares(const Expression& G, const Context& context) {
  validate("sum_squares", G);
  check_context("sum_squares", G, context);
  return context.target == Target::ref ? ref::sum_squares(G, context) : cpu::sum_squares(G, context);
}

}  // namespace forge
