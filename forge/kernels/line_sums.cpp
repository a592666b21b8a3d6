#include "forge/kernels/line_sums.h"

#include "forge/base/error.h"
#include "forge/kernels/check.h"
#include "forge/kernels/cpu/cpu.h"
#include "forge/kernels/ref/ref.h"

namespace forge {

void sum_squares_of_lines(const Expression& G, std::span<double> of_rows, std::span<double> of_columns,
                          const Context& context) {
  constexpr const char* kWho = "sum_squares_of_lines";
  validate(kWho, G);
  check(std::ssize(of_rows) == G.out && std::ssize(of_columns) == G.in, kWho, ": ", of_rows.size(), " rows and ",
        of_columns.size(), " columns are given for a gradient of (", G.out, ", ", G.in, ")");
  check_context(kWho, G, context);
  auto run = context.target == Target::ref ? ref::sum_squares_of_lines : cpu::sum_squares_of_lines;
  run(G, of_rows, of_columns, context);
}

}  // namespace forge
