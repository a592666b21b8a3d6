#include "forge/kernels/recode.h"

#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

void recode(const Stored& to, const Stored& from, Sign sign, const Context& context) {
  check_stored("recode", "from", from, from.values.rows, from.values.cols, sign);
  check_stored("recode", "to", to, from.values.rows, from.values.cols, sign);
  return context.target == Target::ref ? ref::recode(to, from, sign) : cpu::recode(to, from, sign, context);
}

}  // namespace forge
