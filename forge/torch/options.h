#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

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
  // fp32 or bf16; none: each weight's own dtype, as in torch.
  std::optional<c10::ScalarType> state_dtype = std::nullopt;
};

}  // namespace forge
