#pragma once

#include <CLI/App.hpp>
#include <CLI/Validators.hpp>
#include <string>
#include <vector>

namespace forge::app {

// Checks of a number, with a sentence that says what was expected.
CLI::Validator positive();
CLI::Validator not_negative();
CLI::Validator fraction();  // from 0 to below 1

// A command's options with the conventions of this program: grouped help with defaults, --config FILE.
void prepare(CLI::App& app);

// Parses; true where the command shall run, false where help was asked for and has been printed.
// Throws Error with one sentence where the line is wrong; an unknown flag is told its nearest.
bool parse(CLI::App& app, int argc, const char* const* argv);

// The candidate with the fewest edits to `word`, or "" where none is near.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace forge::app
