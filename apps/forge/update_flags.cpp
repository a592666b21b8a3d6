#include "apps/forge/update_flags.h"

#include <CLI/Error.hpp>
#include <cstdio>

#include "apps/forge/cli.h"
#include "forge/torch/make_optimizer.h"

namespace forge::app {

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
