#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "apps/forge/llama_config.h"

namespace forge::app {

struct CompareOptions {
  LlamaConfig config;
  std::vector<std::int64_t> tokens = {16, 64};  // a step; each is one window
  std::int64_t steps = 30;
  std::int64_t exact_steps = 5;
  double lr = 1e-3;
  std::uint64_t seed = 0;
};

// One way to train, at one number of tokens a step.
struct CompareRow {
  std::int64_t tokens = 0;
  std::string mode, reference;
  double step_ms = 0;           // the median
  std::int64_t peak_bytes = 0;  // weights, state and the most that a step allocates above them
  std::int64_t dense_gradient_bytes = 0;
  std::int64_t vector_gradient_bytes = 0;
  std::int64_t held_term_bytes = 0;
  double loss = 0;  // of the last step
  bool same_bits_as_two_phase = false;
};

// Trains four copies of one model on the same batches, step by step in turn and in a rotating order, so that they are
// timed on one machine at one time: two_phase and at_step, clipped at 1; two_phase_unclipped and in_backward,
// unclipped. The two-phase modes multiply every gradient out and keep it until the step; each schedule is compared with
// its own. same_bits: all weights after `exact_steps` steps of fresh copies in exact mode are those of the reference.
std::vector<CompareRow> compare(const CompareOptions& options, const std::vector<std::int32_t>& tokens);

nlohmann::ordered_json to_json(const std::vector<CompareRow>& rows);
// Lines for a reader, with each schedule's speed and memory against its own reference.
std::string to_table(const std::vector<CompareRow>& rows);

}  // namespace forge::app
