#pragma once

#include "forge/base/executor.h"

namespace forge {

// OpenMP threads, for programs without torch (torch brings an OpenMP runtime of its own; a process wants one).
class OpenMpExecutor final : public Executor {
 public:
  // threads = 0: as many as OpenMP would use.
  explicit OpenMpExecutor(int threads = 0);
  int workers() const override { return threads_; }
  void run(FunctionRef<void(int)> body) override;

 private:
  int threads_;
};

}  // namespace forge
