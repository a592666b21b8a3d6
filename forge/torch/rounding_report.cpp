#include "forge/torch/rounding_report.h"

namespace forge {

std::map<std::pair<std::string, Format>, RoundingCount> RoundingReport::by_format() const {
  std::map<std::pair<std::string, Format>, RoundingCount> sums;
  for (const auto& [matrix, count] : matrices) sums[{matrix.name, matrix.format}] += count;
  return sums;
}

std::map<std::pair<std::size_t, std::string>, RoundingCount> RoundingReport::by_matrix() const {
  std::map<std::pair<std::size_t, std::string>, RoundingCount> sums;
  for (const auto& [matrix, count] : matrices) sums[{matrix.parameter, matrix.name}] += count;
  return sums;
}

RoundingCount RoundingReport::sum(bool moments) const {
  RoundingCount all;
  for (const auto& [matrix, count] : matrices)
    if (matrix.is_weight() != moments) all += count;
  return all;
}

}  // namespace forge
