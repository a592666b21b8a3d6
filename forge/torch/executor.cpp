#include "forge/torch/executor.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "forge/torch/allocation.h"

namespace forge {

int AtExecutor::workers() const { return at::get_num_threads(); }

void AtExecutor::run(FunctionRef<void(int)> body) {
  at::parallel_for(0, workers(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t worker = begin; worker < end; ++worker) body(static_cast<int>(worker));
  });
}

namespace {
thread_local at::Tensor workspace;
}

void release_workspace() { workspace = at::Tensor(); }

void reserve_workspace(const Expression& G) { torch_context(G); }

Context torch_context(const Expression& G) {
  static AtExecutor executor;
  auto bytes = static_cast<std::int64_t>(workspace_bytes(G, executor.workers()));
  if (!workspace.defined() || workspace.numel() < bytes) {
    ScopedPurpose purpose(Purpose::workspace);
    workspace = at::Tensor();  // the old one goes first: they need not be alive together
    workspace = at::empty({bytes}, at::kByte);
  }
  auto* data = static_cast<std::byte*>(workspace.data_ptr());
  return {executor, {data, static_cast<std::size_t>(workspace.numel())}};
}

}  // namespace forge
