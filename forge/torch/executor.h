#pragma once

#include "forge/kernels/target.h"

namespace forge {

// Runs workers on torch's own threads. Inside a parallel region of torch, all on the calling thread.
class AtExecutor final : public Executor {
 public:
  int workers() const override;
  void run(FunctionRef<void(int)> body) override;
};

// What a kernel needs for G, on torch's threads. The workspace belongs to the calling thread, grows as needed and is
// used again: a Context is valid until the thread asks for the next one.
Context torch_context(const Expression& G);
// The workspace for G is there from now on: torch_context(G) needs no memory.
void reserve_workspace(const Expression& G);
// Gives the calling thread's workspace back: between steps a few MiB, at the peak of the next forward pass.
void release_workspace();

}  // namespace forge
