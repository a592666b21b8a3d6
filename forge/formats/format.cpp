#include "forge/formats/format.h"

#include "forge/base/error.h"
#include "forge/base/integers.h"

namespace forge {

Stored::Stored(const Matrix& m) : format(m.dtype == DType::bf16 ? Format::bf16 : Format::fp32), values(m) {}

Stored shard_of(const Stored& m, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
  auto part = [&](const Matrix& all, std::int64_t from, std::int64_t n) {
    return Matrix{all.at(row, from), all.dtype, rows, n, all.stride};
  };
  Stored shard = m;
  std::int64_t per_rest = info_of(m.format).columns_of_rest;
  shard.values = part(m.values, col, cols);
  if (info_of(m.format).has_rest) shard.rest = part(m.rest, col / per_rest, ceil_div(cols, per_rest));
  shard.noise.row += row;
  shard.noise.col += col;
  if (m.noise.in == 0) shard.noise.in = m.values.cols;
  return shard;
}

namespace {

void check_part(const char* who, const std::string& what, const Matrix& m, DType dtype, std::int64_t rows,
                std::int64_t cols) {
  check_matrix(who, what.c_str(), m, rows, cols);
  check(m.dtype == dtype, who, ": ", what, " is ", name_of(m.dtype), ", expected ", name_of(dtype));
}

}  // namespace

void check_stored(const char* who, const char* what, const Stored& m, std::int64_t rows, std::int64_t cols, Sign sign) {
  check(is_known(m.format), who, ": ", what, " is of format ", static_cast<int>(m.format),
        ", which is none of Format's");
  const FormatInfo& info = info_of(m.format);
  check_part(who, what, m.values, sign == Sign::any ? info.values : info.not_negative_values, rows, cols);
  if (info.has_rest)
    check_part(who, std::string(what) + "'s " + (info.columns_of_rest == 1 ? "lower part" : "scales"), m.rest,
               info.rest, rows, ceil_div(cols, info.columns_of_rest));
}

}  // namespace forge
