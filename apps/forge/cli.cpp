#include "apps/forge/cli.h"

#include <ATen/Parallel.h>

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <memory>
#include <numeric>
#include <sstream>
#include <thread>
#include <utility>

#include "forge/base/error.h"

namespace forge::app {
namespace {

// Levenshtein's distance.
std::size_t edits(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = std::exchange(row[j], std::min({replaced, row[j] + 1, row[j - 1] + 1}));
    }
  }
  return row.back();
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

[[noreturn]] void refuse_unknown(const CLI::App& app, const std::string& word) {
  const std::string flag = word.substr(0, word.find('='));
  const std::string near = nearest(flag, flags_of(app));
  fail(app.get_name(), ": unknown ", flag.starts_with("-") ? "flag " : "argument ", flag,
       near.empty() ? "" : "; did you mean " + near + "?", near.empty() ? "; see " : " See ", app.get_name(),
       " --help");
}

// `--flag TYPE`, then what it means and, in brackets, what holds without it; wrapped.
class Help final : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    const std::string type = option->get_type_name();
    return type.empty() ? "" : " " + type.substr(0, type.find(':'));
  }

  std::string make_option_desc(const CLI::Option* option) const override {
    std::string text = option->get_description();
    const std::string initial = option->get_default_str();
    if (option->get_required()) text += " [required]";
    if (!initial.empty() && initial != "[]") text += " [" + initial + "]";
    return wrap(text);
  }

 private:
  static std::string wrap(const std::string& text) {
    constexpr std::size_t kWidth = 74;
    std::istringstream words(text);
    std::string result, word;
    for (std::size_t used = 0; words >> word; used += word.size() + 1) {
      const bool full = used > 0 && used + word.size() > kWidth;
      if (full) used = 0;
      result += (full ? "\n" : used > 0 ? " " : "") + word;
    }
    return result;
  }
};

template <class Accepts>
CLI::Validator number(const char* expected, Accepts accepts) {
  const auto check_text = [=](const std::string& text) {
    double value = 0;
    const bool good = CLI::detail::lexical_cast(text, value) && accepts(value);
    return good ? std::string() : text + " is not a number " + expected;
  };
  return CLI::Validator(check_text, "");
}

// Whether strtoll or strtoull, by which the parser reads integers, would have to put another number in the text's
// place.
bool is_beyond(const std::string& text, bool has_sign) {
  errno = 0;
  has_sign ? static_cast<void>(std::strtoll(text.c_str(), nullptr, 0))
           : static_cast<void>(std::strtoull(text.c_str(), nullptr, 0));
  return errno == ERANGE || (!has_sign && text.find('-') != std::string::npos);
}

// Kernels compute in fp32, so that a number beyond it would be infinite there.
bool is_infinite(const std::string& text) {
  double value = 0;
  return CLI::detail::lexical_cast(text, value) && !(std::abs(value) <= std::numeric_limits<float>::max());
}

void check_number(const CLI::Option& option, const std::string& text) {
  const std::string type = option.get_type_name();
  const bool integer = type.starts_with("INT") || type.starts_with("UINT");
  check(!integer || !is_beyond(text, type.starts_with("INT")), option.get_name(), ": ", text,
        " is beyond the integers of ", type.starts_with("INT") ? "64 bits with a sign" : "64 bits without a sign");
  check(!type.starts_with("FLOAT") || !is_infinite(text), option.get_name(), ": ", text,
        " is no finite number of fp32; give one below 3.4e38");
}

void check_numbers(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options())
    for (const std::string& text : option->results()) check_number(*option, text);
}

// Four a core only wait for each other; 256 are what scripts for a larger machine ask for.
std::int64_t most_threads() { return std::max<std::int64_t>(256, 4 * std::thread::hardware_concurrency()); }

}  // namespace

CLI::Validator positive() {
  return number("above 0", [](double value) { return value > 0; });
}
CLI::Validator not_negative() {
  return number("of at least 0", [](double value) { return value >= 0; });
}
CLI::Validator fraction() {
  return number("from 0 to below 1", [](double value) { return 0 <= value && value < 1; });
}

CLI::Option* add_threads(CLI::App& app) {
  const auto set = [](std::int64_t threads) {
    check(0 <= threads && threads <= most_threads(), "--threads: ", threads, " is not from 0 to ", most_threads(),
          ", the most for this machine");
    if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  };
  return app.add_option_function<std::int64_t>("--threads", set, "Threads (0: one a core)")->default_str("0");
}

void prepare(CLI::App& app) {
  app.option_defaults()->always_capture_default();
  const auto help = std::make_shared<Help>();
  help->column_width(34);
  app.formatter(help);
  app.set_help_flag("-h,--help", "Print this help and stop")->group("Run");
  app.set_config("--config", "", "Read options from a TOML file, one `flag = value` a line; flags given here win")
      ->group("Run");
  app.allow_config_extras(false);
}

bool parse(CLI::App& app, int argc, const char* const* argv) try {
  app.parse(argc, argv);
  check_numbers(app);
  return true;
} catch (const CLI::CallForHelp&) {
  std::cout << app.help();
  return false;
} catch (const CLI::ConfigError& error) {
  const std::string text = error.what();  // "INI was not able to parse <key>"
  refuse_unknown(app, "--" + text.substr(text.rfind(' ') + 1));
} catch (const CLI::ParseError& error) {
  // A misspelt flag often shows first as a required one that is missing.
  if (const auto unknown = app.remaining(); !unknown.empty()) refuse_unknown(app, unknown.front());
  fail(app.get_name(), ": ", error.what(), "; see ", app.get_name(), " --help");
}

std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t fewest = std::max<std::size_t>(3, word.size() / 2);
  for (const std::string& candidate : candidates) {
    const bool extends = word.size() > 3 && candidate.starts_with(word);
    const std::size_t count = extends ? 1 : edits(word, candidate);
    if (count < fewest) {
      fewest = count;
      best = candidate;
    }
  }
  return best;
}

}  // namespace forge::app
