#include "apps/forge/rounding.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace forge::app {
namespace {

double percent(std::int64_t part, const RoundingCount& count) {
  return 100 * static_cast<double>(part) / static_cast<double>(std::max<std::int64_t>(count.elements, 1));
}

}  // namespace

std::string readable(const Rounding& rounding) {
  return fmt::format("  lost {:.3g} % of weights' and {:.3g} % of moments' updates",
                     percent(rounding.weights.lost, rounding.weights),
                     percent(rounding.moments.lost, rounding.moments));
}

std::string to_table(const RoundingReport& report) {
  std::string table =
      fmt::format("{:<20}{:<17}{:>15}{:>10}{:>12}{:>12}\n", "", "", "updates", "lost", "saturated", "not finite");
  for (const auto& [kind, count] : report.by_format())
    table += fmt::format("{:<20}{:<17}{:>15}{:>8.3g} %{:>10.3g} %{:>10.3g} %\n", kind.first, name_of(kind.second),
                         count.elements, percent(count.lost, count), percent(count.saturated, count),
                         percent(count.not_finite, count));
  return table;
}

nlohmann::ordered_json to_json(const RoundingCount& count) {
  return {{"elements", count.elements},
          {"lost", count.lost},
          {"saturated", count.saturated},
          {"not_finite", count.not_finite}};
}

nlohmann::ordered_json to_json(const RoundingReport& report) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const auto& [kind, count] : report.by_format()) {
    nlohmann::ordered_json row = {{"of", kind.first}, {"format", name_of(kind.second)}};
    row.update(to_json(count));
    rows.push_back(row);
  }
  return rows;
}

}  // namespace forge::app
