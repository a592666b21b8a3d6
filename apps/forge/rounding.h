#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "apps/forge/trainer.h"

namespace forge::app {

// "  lost 31 % of weights' and 12 % of moments' updates", for a line of progress.
std::string readable(const Rounding& rounding);

// One line for weights and for each moment in each format: the shares that were lost, saturated and not finite.
std::string to_table(const RoundingReport& report);

nlohmann::ordered_json to_json(const RoundingCount& count);
// A list of such counts, each with "of" ("weight" or a moment's key) and "format".
nlohmann::ordered_json to_json(const RoundingReport& report);

}  // namespace forge::app
