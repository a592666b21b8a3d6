#pragma once

#include <cstdint>

namespace forge {

// How many pieces of `unit` cover n, n >= 0 and unit > 0; and what they measure together.
constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit; }
constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) { return ceil_div(n, unit) * unit; }

}  // namespace forge
