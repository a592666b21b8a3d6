#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <map>
#include <string>

#include "forge/formats/format.h"

namespace forge::app {

// Names as add_choice takes them (cli.h): of all rules, and of the formats of weights or of moments.
std::map<std::string, std::string> choices_of_rules();
std::map<std::string, Format> choices_of_formats(bool FormatInfo::*wanted);

// `--rule-library FILE`, any number of times, loaded here and now: the flags that are added after it know what is in
// them. Throws Error where one cannot be loaded.
void add_rule_libraries(CLI::App& app, int argc, const char* const* argv);

// `--shape OUTxIN`, `--rule NAME`: the update of one weight.
void add_shape(CLI::App& app, std::int64_t& out, std::int64_t& in);
void add_rule(CLI::App& app, std::string& rule);

}  // namespace forge::app
