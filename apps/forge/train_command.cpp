#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <spdlog/fmt/fmt.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "apps/forge/batches.h"
#include "apps/forge/cli.h"
#include "apps/forge/commands.h"
#include "apps/forge/corpus.h"
#include "apps/forge/hf_directory.h"
#include "apps/forge/machine.h"
#include "apps/forge/out_folder.h"
#include "apps/forge/progress.h"
#include "apps/forge/rounding.h"
#include "apps/forge/run_log.h"
#include "apps/forge/train_options.h"
#include "apps/forge/update_flags.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

using nlohmann::ordered_json;

// Everything of the model that can be refused before the data is read.
LlamaConfig check_plan(const TrainOptions& options) {
  if (options.init.empty()) return make_config(options.shape, options.data.vocab_size.value_or(1), options.seq);
  const LlamaConfig config = read_config(options.init);
  Llama::check_shapes(config, read_shapes(options.init));
  check(options.seq <= config.max_positions, "--seq ", options.seq, " is longer than the ", config.max_positions,
        " positions of --init; give less");
  return config;
}

// What surely is needed on the CPU: weights, moments, and the scores of one micro-batch in fp32.
void check_plan_fits(const TrainOptions& options, const LlamaConfig& config) {
  if (!at::Device(options.device).is_cpu()) return;
  const auto moments = static_cast<double>(prepare_rule(options.trainer.rule, {}, {}).rule().moments.size());
  const double bytes_of_moments = moments * static_cast<double>(size_of(info_of(options.state).values));
  const double bytes = static_cast<double>(c10::elementSize(options.dtype())) + bytes_of_moments;
  check_memory(bytes * config.parameters(), "the weights and their moments");
  const double tokens = static_cast<double>(options.batch) * static_cast<double>(options.seq);
  check_memory(tokens * static_cast<double>(config.vocab * sizeof(float)), "the scores of one micro-batch");
}

Llama make_model(const TrainOptions& options, LlamaConfig config, const Corpus& corpus) {
  if (options.init.empty()) config.vocab = corpus.vocab;
  check_plan_fits(options, config);
  if (options.init.empty()) return Llama(config, options.dtype(), options.seed, options.device);
  check(corpus.vocab <= config.vocab, "--tokenizer: its ", corpus.vocab, " pieces do not fit the ", config.vocab,
        " rows of --init's embedding; give the tokenizer that the model was trained with");
  Llama model(config, options.dtype(), options.seed, options.device);
  model.load(read_weights(options.init));
  return model;
}

ordered_json step_record(std::int64_t step, double lr, const StepResult& result, const ProgressLine& progress) {
  ordered_json record = {{"event", "step"},
                         {"step", step},
                         {"loss", result.loss},
                         {"lr", lr},
                         {"grad_norm", result.norm},
                         {"tokens_per_second", progress.tokens_per_second(step)},
                         {"seconds", progress.seconds()},
                         {"peak_rss_bytes", peak_resident_bytes()},
                         {"dense_gradient_bytes", result.memory.dense_matrices},
                         {"vector_gradient_bytes", result.memory.dense_vectors},
                         {"held_term_bytes", result.memory.held_terms}};
  if (result.rounding) {
    record["weights_rounding"] = to_json(result.rounding->weights);
    record["moments_rounding"] = to_json(result.rounding->moments);
  }
  return record;
}

void train_steps(const TrainOptions& options, Trainer& trainer, Batches& batches, RunLog& log) {
  const LearningRate schedule = options.learning_rate();
  const std::int64_t micro_batches = options.trainer.accumulation;
  ProgressLine progress(options.steps, micro_batches * options.batch * options.seq);
  for (std::int64_t step = 1; step <= options.steps; ++step) {
    std::vector<at::Tensor> windows;
    for (std::int64_t i = 0; i < micro_batches; ++i) windows.push_back(batches.next(options.batch));
    const StepResult result = trainer.step(windows, schedule.at(step));
    progress.show(step, result.loss, result.rounding ? readable(*result.rounding) : "");
    log.write(step_record(step, schedule.at(step), result, progress));
  }
  progress.finish();
}

void check_finite(const Llama& model) {
  at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : model.parameters()) {
    check(at::isfinite(tensor).all().item<bool>(), name,
          " is not finite after the last step; nothing is written. A "
          "smaller --lr or a longer --warmup helps");
  }
}

std::string sample(const TrainOptions& options, const Llama& model, const Tokenizer& tokenizer) {
  if (options.prompt.empty()) return "";
  std::string text = generate(model, tokenizer, options.prompt, options.sample);
  say(fmt::format("\n{}\n\n", as_utf8(text)));  // of byte tokens, it may be none
  return text;
}

void train(const TrainOptions& options) {
  OutFolder out(options.out, model_files(options.out), options.force);
  const LlamaConfig planned = check_plan(options);
  RunLog log(options.log);
  Corpus corpus = load_corpus(options.data, options.init);
  const Llama model = make_model(options, planned, corpus);
  const std::int64_t n_tokens = static_cast<std::int64_t>(corpus.tokens.size());
  Batches batches(std::move(corpus.tokens), options.seq, options.seed, !options.no_shuffle);
  Trainer trainer(model, options.trainer);
  const auto n_parameters = static_cast<std::int64_t>(model.config().parameters());
  out.check_room(weight_bytes(model));
  say(fmt::format("{} parameters, {} windows of {} tokens\n", n_parameters, batches.windows(), options.seq));
  log.write({{"event", "start"},
             {"text_bytes", corpus.text_bytes},
             {"tokens", n_tokens},
             {"parameters", n_parameters},
             {"steps", options.steps}});
  log.check_written();
  train_steps(options, trainer, batches, log);
  ordered_json end;
  end["event"] = "end";
  if (options.trainer.optimizer.count_rounding) {
    const RoundingReport rounding = trainer.optimizer().rounding();
    say(fmt::format("\n{}\n", to_table(rounding)));
    end["rounding"] = to_json(rounding);
  }
  check_finite(model);
  out.save([&](const std::filesystem::path& folder) { write_directory(folder, model, corpus.tokenizer); });
  say(fmt::format("wrote {}\n", options.out.string()));
  end["sample"] = sample(options, model, corpus.tokenizer);
  log.write(end);
  log.check_written();
}

}  // namespace

void train_command(int argc, const char* const* argv) {
  TrainOptions options;
  CLI::App app("Trains a Llama on text, without storing a weight gradient.", "forge train");
  prepare(app);
  add_rule_libraries(app, argc, argv);
  add_train_options(app, options);
  if (!parse(app, argc, argv)) return;
  settle(app, options);
  std::signal(SIGPIPE, SIG_IGN);  // a reader of stdout that goes is no reason to lose the model
  train(options);
}

}  // namespace forge::app
