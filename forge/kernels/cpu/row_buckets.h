#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "forge/kernels/cpu/arena.h"

namespace forge::cpu {

// The tokens of a Rows term by the row they go to, each row's in token order (a stable counting sort).
class RowBuckets {
 public:
  RowBuckets(std::int64_t rows, std::int64_t tokens, Arena& arena)
      : rows_(rows),
        tokens_(tokens),
        begin_(arena.take<std::int64_t>(rows + 1)),
        order_(arena.take<std::int64_t>(tokens)) {}

  void sort(const std::int64_t* index) {
    std::fill_n(begin_, rows_ + 1, 0);
    for (std::int64_t t = 0; t < tokens_; ++t) ++begin_[index[t] + 1];
    for (std::int64_t r = 0; r < rows_; ++r) begin_[r + 1] += begin_[r];
    for (std::int64_t t = 0; t < tokens_; ++t) order_[begin_[index[t]]++] = t;
    // Placing has moved each start to its end, which is the next row's start.
    for (std::int64_t r = rows_; r > 0; --r) begin_[r] = begin_[r - 1];
    begin_[0] = 0;
  }

  std::span<const std::int64_t> tokens(std::int64_t row) const {
    return {order_ + begin_[row], order_ + begin_[row + 1]};
  }

 private:
  std::int64_t rows_, tokens_;
  std::int64_t* begin_;
  std::int64_t* order_;
};

}  // namespace forge::cpu
