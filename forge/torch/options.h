#pragma once

#include <cstdint>
#include <optional>

#include "forge/formats/format.h"

namespace forge {

// When a weight is updated.
enum class Schedule {
  at_step,      // in Optimizer::step(): standard semantics in full; dY and X are kept until then
  in_backward,  // as soon as the weight's last use of this backward is done: nothing is kept
};

// When terms are multiplied out into a dense gradient.
enum class Collapse {
  automatic,  // when they hold more bytes than the dense gradient would
  never,
  always,  // on arrival, in fp32: ordinary two-phase training, the baseline
};

// What all optimizers share, whatever their rule.
struct OptimizerOptions {
  Schedule schedule = Schedule::at_step;
  Collapse collapse = Collapse::automatic;
  // Norms by the chain only, dense gradients in fp32: the same bits as the two-phase baseline, clipped or not.
  bool exact = false;
  // How moments are kept: fp32, bf16, bf16_stochastic, int8 or fp8; none: in each weight's own dtype, as in torch. Of
  // fewer than 16 bits only those of large matrices that are no embeddings, whose rare rows would lose most: the others
  // are fp32.
  std::optional<Format> state_format = std::nullopt;
  // How bf16 weights are kept and rounded: bf16 (to nearest), bf16_stochastic, bf16_plus16 or bf16_plus8. Weights of
  // fp32 stay what they are.
  Format weight_format = Format::bf16;
  // Of the noise that stochastic rounding takes.
  std::uint64_t seed = 0;
  // Optimizer::rounding() says what rounding does to the updates. No bit depends on it; updates take longer.
  bool count_rounding = false;
};

// Matrices of fewer elements keep moments of at least 16 bits, unless their group asks for a format.
constexpr std::int64_t kLeastCompressed = 4096;

}  // namespace forge
