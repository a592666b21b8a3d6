#include <cstdio>
#include <exception>
#include <iostream>
#include <string>

#include "apps/forge/cli.h"
#include "apps/forge/commands.h"
#include "apps/forge/machine.h"
#include "forge/base/error.h"

namespace {

constexpr const char* kHelp = R"(forge trains large language models without storing a weight gradient.

Usage: forge COMMAND [FLAGS]

  train     from text to a model that Hugging Face's transformers open
  compare   the same training with and without stored gradients, side by side
  verify    checks on this machine what is promised to be exact, on a weight of your shape
  bench     times the update of one weight in every format: forge bench update

`forge COMMAND --help` lists a command's flags. To begin with:

  forge train --data some/folder --out my-model --sample "Once upon a time"
)";

// The exit code for a wrong command line, as shells have it.
constexpr int kUsage = 2;

int run(int argc, const char* const* argv) {
  const std::string command = argc > 1 ? argv[1] : "--help";
  if (command == "--help" || command == "-h" || command == "help") {
    std::cout << kHelp;
    return argc > 1 ? 0 : kUsage;
  }
  if (command == "train") {
    forge::app::train_command(argc - 1, argv + 1);
  } else if (command == "compare") {
    forge::app::compare_command(argc - 1, argv + 1);
  } else if (command == "verify") {
    forge::app::verify_command(argc - 1, argv + 1);
  } else if (command == "bench") {
    forge::app::bench_command(argc - 1, argv + 1);
  } else if (command == "logits") {
    forge::app::logits_command(argc - 1, argv + 1);
  } else {
    const std::string near = forge::app::nearest(command, {"train", "compare", "verify", "bench"});
    std::cerr << "forge: unknown command " << command << (near.empty() ? "" : "; did you mean " + near + "?")
              << " See forge --help\n";
    return kUsage;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int status = run(argc, argv);
    std::cout.flush();
    forge::check(std::fflush(stdout) == 0 && std::ferror(stdout) == 0,
                 "what the program prints cannot be written; all else is done. Is the disk full?");
    return status;
  } catch (const std::exception& error) {
    std::cerr << "forge: " << forge::app::sentence_of(error) << "\n";
    return 1;
  }
}
