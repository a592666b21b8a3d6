#include <ATen/Parallel.h>
#include <spdlog/fmt/fmt.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/forge/cli.h"
#include "apps/forge/commands.h"
#include "apps/forge/json_file.h"
#include "apps/forge/update_bench.h"
#include "apps/forge/update_flags.h"
#include "forge/base/error.h"

namespace forge::app {

void bench_command(int argc, const char* const* argv) {
  check(argc > 1 && (std::string(argv[1]) == "update" || std::string(argv[1]) == "--help"),
        "forge bench measures one thing: forge bench update [FLAGS]");
  UpdateBenchOptions o;
  std::filesystem::path json;
  CLI::App app("Times the fused update of one weight in every pair of formats, beside two phases and the limit.",
               "forge bench update");
  prepare(app);
  add_rule_libraries(app, argc - 1, argv + 1);
  add_shape(app, o.out, o.in);
  app.add_option("--tokens", o.tokens, "Tokens in a step; each number is measured by itself")
      ->delimiter(',')
      ->check(positive());
  add_rule(app, o.rule);
  app.add_option("--repetitions", o.repetitions, "Timed updates of each kind, after one that is not")
      ->check(positive());
  add_threads(app);
  app.add_option("--json", json, "File for the rows");
  if (!parse(app, argc - 1, argv + 1)) return;
  const std::vector<UpdateBenchRow> rows = bench_update(o);
  fmt::print("{} of a {} x {} weight, {} threads, medians of {}\n{}", o.rule, o.out, o.in, at::get_num_threads(),
             o.repetitions, to_table(rows));
  write_json(json, to_json(rows));
}

}  // namespace forge::app
