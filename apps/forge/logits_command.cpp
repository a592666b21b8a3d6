#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/forge/cli.h"
#include "apps/forge/commands.h"
#include "apps/forge/hf_directory.h"
#include "forge/base/error.h"

namespace forge::app {

void logits_command(int argc, const char* const* argv) {
  std::filesystem::path directory;
  std::vector<std::int64_t> ids;
  CLI::App app("Prints a model's logits for some ids, one JSON row a position.", "forge logits");
  prepare(app);
  app.add_option("--model", directory, "A Hugging Face directory")->required();
  app.add_option("--ids", ids, "Token ids, separated by commas")->required()->delimiter(',');
  if (!parse(app, argc, argv)) return;

  at::NoGradGuard no_grad;
  const LlamaConfig config = read_config(directory);
  Llama::check_shapes(config, read_shapes(directory));
  Llama model(config, at::kFloat, 0);
  model.load(read_weights(directory));
  for (const std::int64_t id : ids) check(0 <= id && id < model.config().vocab, "--ids: ", id, " is no token's");
  const at::Tensor logits = model.logits(at::tensor(ids, at::kLong).unsqueeze(0)).select(0, 0).contiguous();
  nlohmann::json rows = nlohmann::json::array();
  for (std::int64_t t = 0; t < logits.size(0); ++t) {
    const float* row = logits.const_data_ptr<float>() + t * logits.size(1);
    rows.push_back(std::vector<float>(row, row + logits.size(1)));
  }
  std::cout << rows.dump() << "\n";
}

}  // namespace forge::app
