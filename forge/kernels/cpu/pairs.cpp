#include "forge/kernels/cpu/pairs.h"

#include <algorithm>
#include <atomic>

#include "forge/base/dtype.h"

namespace forge::cpu {
namespace {

constexpr std::int16_t kMagnitude = 0x7FFF, kInfinity = 0x7F80;
constexpr int kFraction = 7;  // bits

// The bits of the magnitude closest to 0 that is not 0; those of infinity where there is none.
std::int16_t smallest_magnitude(const std::int16_t* x, std::int64_t n) {
  std::int16_t smallest = kInfinity - 1;  // less one, for then 0 is the largest of all
  for (std::int64_t i = 0; i < n; ++i)
    smallest = std::min(smallest, static_cast<std::int16_t>(((x[i] & kMagnitude) - 1) & kMagnitude));
  return static_cast<std::int16_t>(smallest + 1);
}

std::int16_t smallest_magnitude(const ConstMatrix& m, Executor& executor) {
  constexpr std::int64_t kNumbers = 1 << 16;  // of a task: some 5 µs, as long as it takes to wake a thread
  std::int64_t rows = std::max<std::int64_t>(kNumbers / std::max<std::int64_t>(m.cols, 1), 1);
  std::int64_t tasks = ceil_div(m.rows, rows);
  std::atomic<std::int16_t> smallest = kInfinity;
  SerialExecutor here_alone;
  Executor& chosen = tasks > 1 ? executor : here_alone;
  parallel_tasks(chosen, tasks, [&](std::int64_t task, int) {
    std::int16_t here = kInfinity;
    for (std::int64_t r = task * rows; r < std::min((task + 1) * rows, m.rows); ++r)
      here = std::min(here, smallest_magnitude(static_cast<const std::int16_t*>(m.row(r)), m.cols));
    std::int16_t known = smallest;
    while (here < known && !smallest.compare_exchange_weak(known, here)) {
    }
  });
  return smallest;
}

bool is_bf16(const Outer& outer) {
  return outer.scale == 1 && outer.dY.dtype == DType::bf16 && outer.X.dtype == DType::bf16;
}

}  // namespace

bool is_exact_in_pairs(const Expression& G, Executor& executor) {
  auto is_outer = [](const Term& term) { return std::holds_alternative<Outer>(term); };
  auto rest = std::ranges::find_if_not(G.terms, is_outer);
  std::span outers = G.terms.first(static_cast<std::size_t>(rest - G.terms.begin()));
  auto fits = [](const Term& term) { return is_bf16(std::get<Outer>(term)); };
  if (outers.empty() || !std::ranges::all_of(outers, fits) || std::any_of(rest, G.terms.end(), is_outer)) return false;
  int e_dY = kInfinity >> kFraction, e_X = e_dY;
  for (const Term& term : outers) {
    const Outer& outer = std::get<Outer>(term);
    e_dY = std::min(e_dY, smallest_magnitude(outer.dY, executor) >> kFraction);
    e_X = std::min(e_X, smallest_magnitude(outer.X, executor) >> kFraction);
    if (e_dY == 0 || e_X == 0 || e_dY + e_X < 142) return false;
  }
  return true;
}

}  // namespace forge::cpu
