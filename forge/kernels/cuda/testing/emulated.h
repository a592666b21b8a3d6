#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "forge/base/executor.h"
#include "forge/kernels/cuda/launch.h"
#include "forge/kernels/testing/harness.h"
#include "tests/emulator/twins.h"

// Kernels on the emulated machine, beside Target::ref.
namespace forge::testing {

// Runs what f launches by the schedule of a seed and expects no deadlock and no broken rule.
template <class F>
auto emulate(std::uint64_t seed, F&& f) {
  emulator::session = {emulator::Schedule::from_seed(seed), {}, 0};
  struct Look {
    std::uint64_t seed;
    ~Look() {
      const emulator::Outcome& outcome = emulator::session.outcome;
      EXPECT_TRUE(outcome.clean()) << emulator::Schedule::from_seed(seed).describe() << "\n" << outcome.describe();
    }
  } look{seed};
  return f();
}

inline SerialExecutor& serial() {
  static SerialExecutor executor;
  return executor;
}
inline Place reference() { return {serial(), Target::ref}; }

// A weight whose rows are `padding` columns apart, those of its moments one more each: 0 in steps of 4 columns lets
// threads take four at once.
template <class Next>
Weight padded_weight(Shape shape, Storage storage, const RuleInfo& rule, std::int64_t padding, Next&& next) {
  Weight weight(shape, storage, rule, next);
  auto widened = [&](StoredBuffer& m, std::int64_t by) {
    StoredBuffer to(shape.out, shape.in, m.format(), m.sign(), by);
    for (std::int64_t r = 0; r < shape.out; ++r) to.set_row(r, m.row(r));
    m = to;
  };
  widened(weight.W, padding);
  for (std::size_t k = 0; k < weight.S.size(); ++k) widened(weight.S[k], padding == 0 ? 0 : padding + 1);
  return weight;
}

}  // namespace forge::testing
