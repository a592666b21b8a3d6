#include "apps/forge/compare.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "apps/forge/batches.h"
#include "apps/forge/llama.h"
#include "apps/forge/machine.h"
#include "apps/forge/progress.h"
#include "apps/forge/trainer.h"
#include "forge/torch/allocation.h"

namespace forge::app {
namespace {

struct Mode {
  const char* name;
  const char* reference;
  Schedule schedule;
  Collapse collapse;
  double clip;
};

constexpr Mode kModes[] = {
    {"two_phase", "two_phase", Schedule::at_step, Collapse::always, 1},
    {"at_step", "two_phase", Schedule::at_step, Collapse::automatic, 1},
    {"two_phase_unclipped", "two_phase_unclipped", Schedule::at_step, Collapse::always, 0},
    {"in_backward", "two_phase_unclipped", Schedule::in_backward, Collapse::automatic, 0},
};
constexpr std::size_t kModeCount = std::size(kModes);
constexpr std::int64_t kWarmUpSteps = 3;  // allocate the state, fault in its pages; trained but not timed

TrainerOptions trainer_options(const Mode& mode, bool exact) {
  TrainerOptions options;
  options.optimizer = {
      .schedule = mode.schedule, .collapse = mode.collapse, .exact = exact, .state_format = Format::fp32};
  options.clip = mode.clip;
  return options;
}

// One copy of the model under training in one mode, and what its steps took.
class Copy {
 public:
  Copy(const CompareOptions& options, const Mode& mode, bool exact)
      : mode_(mode),
        lr_(options.lr),
        model_(options.config, at::kFloat, options.seed),
        trainer_(model_, trainer_options(mode, exact)) {}

  void step(const at::Tensor& windows) {
    const AllocationRecorder recorder;
    const auto start = std::chrono::steady_clock::now();
    const StepResult result = trainer_.step({windows}, lr_);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    loss_ = result.loss;
    if (++steps_ <= kWarmUpSteps) return;
    times_.push_back(took.count());
    step_peak_ = std::max(step_peak_, recorder.peak_bytes());
    dense_matrices_ = std::max(dense_matrices_, result.memory.dense_matrices);
    dense_vectors_ = std::max(dense_vectors_, result.memory.dense_vectors);
    held_terms_ = std::max(held_terms_, result.memory.held_terms);
  }

  CompareRow row(std::int64_t tokens) {
    std::sort(times_.begin(), times_.end());
    const MemoryReport resting = trainer_.optimizer().memory();
    return {.tokens = tokens,
            .mode = mode_.name,
            .reference = mode_.reference,
            .step_ms = times_[times_.size() / 2],
            .peak_bytes = resting.weights + resting.state + step_peak_,
            .dense_gradient_bytes = dense_matrices_,
            .vector_gradient_bytes = dense_vectors_,
            .held_term_bytes = held_terms_,
            .loss = loss_};
  }

  const Mode& mode() const { return mode_; }

  bool same_weights(const Copy& other) const {
    const auto &a = model_.parameters(), &b = other.model_.parameters();
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const NamedTensor& x, const NamedTensor& y) {
      return x.tensor.nbytes() == y.tensor.nbytes() &&
             std::memcmp(x.tensor.const_data_ptr(), y.tensor.const_data_ptr(), x.tensor.nbytes()) == 0;
    });
  }

 private:
  const Mode& mode_;
  double lr_;
  Llama model_;
  Trainer trainer_;
  std::int64_t steps_ = 0, step_peak_ = 0, dense_matrices_ = 0, dense_vectors_ = 0, held_terms_ = 0;
  double loss_ = 0;
  std::vector<double> times_;
};

const Mode& find_mode(const std::string& name) {
  return *std::find_if(std::begin(kModes), std::end(kModes), [&](const Mode& mode) { return name == mode.name; });
}

bool same_bits(const CompareOptions& options, const Mode& mode, Batches batches) {
  Copy reference(options, find_mode(mode.reference), /*exact=*/true);
  Copy copy(options, mode, /*exact=*/true);
  for (std::int64_t step = 0; step < options.exact_steps; ++step) {
    const at::Tensor windows = batches.next(1);
    reference.step(windows);
    copy.step(windows);
  }
  return copy.same_weights(reference);
}

std::vector<CompareRow> run_modes(const CompareOptions& options, std::int64_t tokens, Batches batches) {
  std::vector<std::unique_ptr<Copy>> copies;
  for (const Mode& mode : kModes) copies.push_back(std::make_unique<Copy>(options, mode, /*exact=*/false));
  for (std::int64_t step = 0; step < options.steps + kWarmUpSteps; ++step) {
    const at::Tensor windows = batches.next(1);
    for (std::size_t i = 0; i < kModeCount; ++i) copies[(i + step) % kModeCount]->step(windows);
  }
  std::vector<CompareRow> rows;
  for (const auto& copy : copies) rows.push_back(copy->row(tokens));
  return rows;
}

const CompareRow& reference_of(const CompareRow& row, const std::vector<CompareRow>& rows) {
  return *std::find_if(rows.begin(), rows.end(), [&](const CompareRow& other) {
    return other.tokens == row.tokens && other.mode == row.reference;
  });
}

}  // namespace

std::vector<CompareRow> compare(const CompareOptions& options, const std::vector<std::int32_t>& tokens) {
  constexpr double kBytes = kModeCount * 3 * sizeof(float);  // AdamW has two moments
  check_memory(kBytes * options.config.parameters(), "the copies of the weights with their moments");
  std::vector<CompareRow> rows;
  for (const std::int64_t count : options.tokens) {
    const Batches batches(tokens, count, options.seed, /*shuffle=*/true);
    fmt::print("{} tokens a step: {} steps of each mode in turn\n", count, options.steps);
    std::fflush(stdout);
    std::vector<CompareRow> here = run_modes(options, count, batches);
    for (CompareRow& row : here) {
      row.same_bits_as_two_phase = row.mode == row.reference || same_bits(options, find_mode(row.mode), batches);
      rows.push_back(std::move(row));
    }
  }
  return rows;
}

nlohmann::ordered_json to_json(const std::vector<CompareRow>& rows) {
  nlohmann::ordered_json result = nlohmann::ordered_json::array();
  for (const CompareRow& row : rows) {
    result.push_back({{"tokens", row.tokens},
                      {"mode", row.mode},
                      {"step_ms", row.step_ms},
                      {"peak_bytes", row.peak_bytes},
                      {"dense_gradient_bytes", row.dense_gradient_bytes},
                      {"vector_gradient_bytes", row.vector_gradient_bytes},
                      {"held_term_bytes", row.held_term_bytes},
                      {"loss", row.loss},
                      {"same_bits_as_two_phase", row.same_bits_as_two_phase}});
  }
  return result;
}

std::string to_table(const std::vector<CompareRow>& rows) {
  std::string table =
      fmt::format("{:>6}  {:<20}{:>9}  {:>7}{:>11}{:>13}{:>13}{:>11}  {:>7}  {}\n", "tokens", "mode", "ms/step",
                  "speed", "peak", "dense grads", "vector grads", "held", "loss", "same weights, bit for bit");
  for (const CompareRow& row : rows) {
    const CompareRow& reference = reference_of(row, rows);
    const bool itself = row.mode == row.reference;
    table += fmt::format("{:>6}  {:<20}{:>9.1f}  {:>7}{:>11}{:>13}{:>13}{:>11}  {:>7.4f}  {}\n", row.tokens, row.mode,
                         row.step_ms, itself ? "" : fmt::format("{:.2f}x", reference.step_ms / row.step_ms),
                         readable_bytes(row.peak_bytes), readable_bytes(row.dense_gradient_bytes),
                         readable_bytes(row.vector_gradient_bytes), readable_bytes(row.held_term_bytes), row.loss,
                         itself                       ? "(reference)"
                         : row.same_bits_as_two_phase ? "yes"
                                                      : "NO");
  }
  return table;
}

}  // namespace forge::app
