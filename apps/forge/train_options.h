#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "apps/forge/generate.h"
#include "apps/forge/llama_config.h"
#include "apps/forge/schedule.h"
#include "apps/forge/trainer.h"

namespace forge::app {

// Where text and ids come from.
struct DataOptions {
  std::vector<std::filesystem::path> paths;
  std::int64_t max_bytes = 0;
  std::string tokenizer;  // a file, "bytes", or "" to train one
  std::optional<std::int64_t> vocab_size;
};

struct TrainOptions {
  DataOptions data;
  ShapeOptions shape;
  std::filesystem::path init, out, log;
  bool force = false, no_shuffle = false, no_fuse = false;
  std::int64_t batch = 8, seq = 256, steps = 1000;
  std::optional<std::int64_t> warmup;
  std::optional<double> min_lr, clip;
  double lr = 1e-3;
  RuleValues values;  // of the rule, as given
  Format weights = Format::fp32, state = Format::fp32;
  std::uint64_t seed = 0;
  std::string device = "cpu";
  std::string prompt;
  SampleOptions sample;
  TrainerOptions trainer;

  LearningRate learning_rate() const;
  // What the model's weights are made in.
  at::ScalarType dtype() const { return weights == Format::fp32 ? at::kFloat : at::kBFloat16; }
};

// Adds the flags; `options` outlives the parse.
void add_data_options(CLI::App& app, DataOptions& options);
void add_train_options(CLI::App& app, TrainOptions& options);

// Moves what was given into options.trainer. Throws Error where flags contradict each other.
void settle(const CLI::App& app, TrainOptions& options);

}  // namespace forge::app
