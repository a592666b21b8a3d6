#include <spdlog/fmt/fmt.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/forge/cli.h"
#include "apps/forge/commands.h"
#include "apps/forge/compare.h"
#include "apps/forge/corpus.h"
#include "apps/forge/json_file.h"

namespace forge::app {
namespace {

struct CompareFlags {
  DataOptions data;
  ShapeOptions shape{.preset = "47m"};
  CompareOptions options;
  std::filesystem::path json;
};

void add_flags(CLI::App& app, CompareFlags& f) {
  add_data_options(app, f.data);
  app.add_option("--preset", f.shape.preset, "Shape of the model, as in forge train")->group("Comparison");
  app.add_option("--tokens", f.options.tokens, "Tokens a step; each number is a comparison of its own")
      ->check(positive())
      ->group("Comparison");
  app.add_option("--steps", f.options.steps, "Timed steps of each mode, after three that are not")
      ->check(positive())
      ->group("Comparison");
  app.add_option("--exact-steps", f.options.exact_steps, "Steps in exact mode before weights are compared bit for bit")
      ->check(positive())
      ->group("Comparison");
  app.add_option("--lr", f.options.lr, "Learning rate of AdamW")->check(positive())->group("Comparison");
  app.add_option("--seed", f.options.seed, "Seed of weights and order")->group("Comparison");
  add_threads(app)->group("Comparison");
  app.add_option("--json", f.json, "File for the rows")->group("Output");
}

}  // namespace

void compare_command(int argc, const char* const* argv) {
  CompareFlags flags;
  CLI::App app("Trains one model in four ways side by side: with every gradient stored, and without.", "forge compare");
  prepare(app);
  add_flags(app, flags);
  if (!parse(app, argc, argv)) return;
  const Corpus corpus = load_corpus(flags.data);
  flags.options.config = make_config(flags.shape, corpus.vocab, /*seq=*/1);
  const std::vector<CompareRow> rows = compare(flags.options, corpus.tokens);
  fmt::print("\n{}", to_table(rows));
  write_json(flags.json, to_json(rows));
}

}  // namespace forge::app
