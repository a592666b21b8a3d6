#include "apps/forge/update_flags.h"

#include <CLI/Error.hpp>
#include <cstdio>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "apps/forge/cli.h"
#include "forge/base/error.h"
#include "forge/kernels/rule_library.h"
#include "forge/rules/registry.h"
#include "forge/torch/make_optimizer.h"

namespace forge::app {
namespace {

constexpr std::string_view kRuleLibrary = "--rule-library";

// The values of the flag on a line that has not been parsed.
std::set<std::string> rule_libraries(std::span<const char* const> line) {
  std::set<std::string> paths;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const std::string_view word = line[i];
    if (word == kRuleLibrary && i + 1 < line.size()) paths.emplace(line[i + 1]);
    if (word.starts_with(kRuleLibrary) && word.substr(kRuleLibrary.size()).starts_with('='))
      paths.emplace(word.substr(kRuleLibrary.size() + 1));
  }
  return paths;
}

}  // namespace

void add_rule_libraries(CLI::App& app, int argc, const char* const* argv) {
  const std::set<std::string> loaded = rule_libraries({argv, static_cast<std::size_t>(argc)});
  for (const std::string& path : loaded) load_rule_library(path);
  const auto check_loaded = [loaded](const std::vector<std::string>& paths) {
    for (const std::string& path : paths)
      check(loaded.contains(path), kRuleLibrary, ": the flags depend on it, so give it on the line, not in --config");
  };
  app.add_option_function<std::vector<std::string>>(
         std::string(kRuleLibrary), check_loaded,
         "Library of an optimizer of your own (docs/rules.md), which this help then shows; may be given again")
      ->allow_extra_args(false)
      ->type_name("FILE")
      ->group("Optimizer");
}

std::map<std::string, std::string> choices_of_rules() {
  std::map<std::string, std::string> all;
  for (const std::string& name : optimizer_names()) all[name] = name;
  return all;
}

std::map<std::string, Format> choices_of_formats(bool FormatInfo::*wanted) {
  std::map<std::string, Format> all;
  for (int i = 0; i < kFormatCount; ++i)
    if (kFormats[i].*wanted) all[kFormats[i].name] = Format(i);
  return all;
}

void add_shape(CLI::App& app, std::int64_t& out, std::int64_t& in) {
  const auto set = [&out, &in](const std::string& text) {
    long long rows = 0, cols = 0;
    char rest = 0;
    if (std::sscanf(text.c_str(), "%lldx%lld%c", &rows, &cols, &rest) != 2 || rows < 1 || cols < 1)
      throw CLI::ValidationError("--shape", text + " is not OUTxIN, as 4096x11008");
    out = rows;
    in = cols;
  };
  app.add_option_function<std::string>("--shape", set, "Rows and columns of the weight")
      ->type_name("OUTxIN")
      ->default_str(std::to_string(out) + "x" + std::to_string(in));
}

void add_rule(CLI::App& app, std::string& rule) {
  std::map<std::string, std::string> of_one_pass = choices_of_rules();
  std::erase_if(of_one_pass, [](const auto& choice) { return prepare_rule(choice.first, {}, {}).rule().next_pass; });
  add_choice(app, "--rule", rule, of_one_pass, rule.c_str(), "Update rule of one pass, with its default options");
}

}  // namespace forge::app
