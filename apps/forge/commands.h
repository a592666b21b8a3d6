#pragma once

namespace forge::app {

// The program's commands: each parses its own line (argv[0] is the command) and throws Error where it cannot go on.
void train_command(int argc, const char* const* argv);
void compare_command(int argc, const char* const* argv);
void verify_command(int argc, const char* const* argv);
void bench_command(int argc, const char* const* argv);
// For tests, not listed in the help: the logits of a model's directory for given ids.
void logits_command(int argc, const char* const* argv);

}  // namespace forge::app
