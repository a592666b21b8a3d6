#pragma once

#include <cstddef>
#include <span>

#include "forge/base/executor.h"
#include "forge/gradient/terms.h"

namespace forge {

// What a kernel runs on. `ref` is the definition: plain loops. The others give the same bits, faster.
enum class Target { ref, avx2, avx512, neon };

const char* name_of(Target target);

// What this machine can run, `ref` first, the fastest last.
std::span<const Target> available_targets();
// The fastest, or what the environment variable FORGE_TARGET names. Throws Error where this machine does not have that.
Target best_target();

// Everything a kernel needs beside its operands. Kernels never allocate.
struct Context {
  Executor& executor;
  // Scratch of at least workspace_bytes(), any alignment; its content does not matter before or after.
  std::span<std::byte> workspace;
  Target target = best_target();
};

// Bytes of scratch that update, materialize and sum_squares need for this expression.
std::size_t workspace_bytes(const Expression& G, int workers, Target target = best_target());

}  // namespace forge
