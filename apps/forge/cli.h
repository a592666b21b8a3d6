#pragma once

#include <CLI/App.hpp>
#include <CLI/Error.hpp>
#include <CLI/Validators.hpp>
#include <map>
#include <string>
#include <vector>

namespace forge::app {

// Checks of a number, with a sentence that says what was expected.
CLI::Validator positive();
CLI::Validator not_negative();
CLI::Validator fraction();  // from 0 to below 1

// `--threads N`, set when it is parsed.
CLI::Option* add_threads(CLI::App& app);

// A command's options with the conventions of this program: grouped help with defaults, --config FILE.
void prepare(CLI::App& app);

// Parses; true where the command shall run, false where help was asked for and has been printed.
// Throws Error with one sentence where the line is wrong; an unknown flag is told its nearest. No number that is
// infinite, none or beyond its type reaches a command.
bool parse(CLI::App& app, int argc, const char* const* argv);

// A flag whose value is one of the map's names.
template <class T>
CLI::Option* add_choice(CLI::App& app, const char* flag, T& value, const std::map<std::string, T>& choices,
                        const char* initial, const std::string& help) {
  std::string names;
  for (const auto& [name, unused] : choices) names += (names.empty() ? "" : "|") + name;
  const auto set = [&value, choices, names](const std::string& text) {
    const auto found = choices.find(text);
    if (found == choices.end()) throw CLI::ValidationError(text + " is none of " + names);
    value = found->second;
  };
  return app.add_option_function<std::string>(flag, set, help)->type_name(names)->default_str(initial);
}

// The candidate with the fewest edits to `word`, or "" where none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace forge::app
