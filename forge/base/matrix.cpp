#include "forge/base/matrix.h"

namespace forge {

void check_matrix(const char* who, const char* what, const ConstMatrix& m, std::int64_t rows, std::int64_t cols) {
  check(m.rows == rows && m.cols == cols && rows >= 0 && cols >= 0, who, ": ", what, " is (", m.rows, ", ", m.cols,
        "), expected (", rows, ", ", cols, ")");
  check(m.stride >= m.cols, who, ": ", what, " has a row stride of ", m.stride, " elements, at least its ", m.cols,
        " columns are needed");
  check(is_known(m.dtype), who, ": ", what, " is of dtype ", static_cast<int>(m.dtype), ", which is none of DType's");
  check(m.data != nullptr || rows == 0 || cols == 0, who, ": ", what, " (", rows, ", ", cols, ") has no data");
}

}  // namespace forge
