#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "apps/forge/cli.h"
#include "apps/forge/commands.h"
#include "apps/forge/update_flags.h"
#include "apps/forge/verify.h"
#include "forge/base/error.h"
#include "forge/kernels/target.h"

namespace forge::app {

void verify_command(int argc, const char* const* argv) {
  VerifyOptions o;
  CLI::App app("Checks on this machine what docs/numerics.md promises, for a weight of your shape.", "forge verify");
  prepare(app);
  add_rule_libraries(app, argc, argv);
  add_shape(app, o.out, o.in);
  app.add_option("--tokens", o.tokens, "Tokens in a step")->check(positive());
  add_rule(app, o.rule);
  add_choice(app, "--weights", o.weight, choices_of_formats(&FormatInfo::for_weights), "fp32", "Format of the weight");
  add_choice(app, "--state", o.state, choices_of_formats(&FormatInfo::for_moments), "fp32", "Format of the moments");
  app.add_option("--seed", o.seed, "Seed of the numbers");
  if (!parse(app, argc, argv)) return;

  fmt::print("Three updates by {} of a {} x {} weight in {} with moments in {}, {} tokens each, {} instructions.\n",
             o.rule, o.out, o.in, name_of(o.weight), name_of(o.state), o.tokens, name_of(best_target()));
  fmt::print("Every byte of the weight and its moments was compared. The fused update\n");
  const std::vector<Finding> findings = verify(o);
  for (const Finding& f : findings) fmt::print("  {}  {}\n", f.holds ? "yes" : "NO ", f.says);
  fmt::print(
      "The gradient is one chain of fp32 multiply-adds for each element, exact in order and not in sum: at most\n"
      "{:.2g} of fp32's epsilon times the sum of |dY X| from fp64.\n",
      chain_error(o));
  const auto failed = std::ranges::count_if(findings, [](const Finding& f) { return !f.holds; });
  check(failed == 0, failed, " of ", findings.size(),
        " checks do not hold on this machine; please report it with the "
        "lines above");
}

}  // namespace forge::app
