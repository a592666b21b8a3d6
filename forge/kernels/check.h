#pragma once

#include <algorithm>

#include "forge/kernels/target.h"

namespace forge {

// What every operation asks of its context, checked before anything is written. `who` opens the sentence.
inline void check_context(const char* who, const Expression& G, const Context& context) {
  auto all = available_targets();
  check(std::find(all.begin(), all.end(), context.target) != all.end(), who, ": this machine cannot run ",
        name_of(context.target), "; available_targets() lists what it can");
  std::size_t needed = workspace_bytes(G, context.executor.workers(), context.target);
  check(context.workspace.size() >= needed, who, ": the workspace has ", context.workspace.size(), " bytes, ", needed,
        " are needed (workspace_bytes)");
}

}  // namespace forge
