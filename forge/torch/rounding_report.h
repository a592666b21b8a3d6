#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "forge/formats/format.h"
#include "forge/kernels/rounding.h"

namespace forge {

// What a format keeps for one parameter.
struct RoundedMatrix {
  std::size_t parameter;  // its place in Optimizer::state()
  std::string name;       // "weight", or the moment's key
  Format format;

  bool is_weight() const { return name == "weight"; }
  auto operator<=>(const RoundedMatrix&) const = default;
};

// What rounding has done in all updates of an optimizer (kernels/rounding.h).
struct RoundingReport {
  std::map<RoundedMatrix, RoundingCount> matrices;
  // Times that a gradient was found not to be finite, by GradScaler or by a norm, and was dropped before a step(). Seen
  // where it is the recorded gradient of a matrix.
  std::int64_t skipped_steps = 0;

  // (name, format) → the sum over parameters.
  std::map<std::pair<std::string, Format>, RoundingCount> by_format() const;
  // (parameter, name) → the sum over the formats that it was kept in.
  std::map<std::pair<std::size_t, std::string>, RoundingCount> by_matrix() const;
  RoundingCount of_weights() const { return sum(false); }
  RoundingCount of_moments() const { return sum(true); }

 private:
  RoundingCount sum(bool moments) const;
};

}  // namespace forge
