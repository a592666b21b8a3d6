#pragma once

#include <atomic>
#include <cstdint>

#include "forge/base/function_ref.h"

namespace forge {

// Where parallel work runs. Injected, so that a process has one thread pool: at::parallel_for under torch, OpenMP in
// the core's own tests and benchmarks. An implementation may run all workers on one thread, one after another
// (nested calls do): workers never wait for each other.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int workers() const = 0;
  // Calls body(0) … body(workers() - 1), in any order, on any threads, and returns when all have returned.
  // The body does not throw.
  virtual void run(FunctionRef<void(int worker)> body) = 0;
};

class SerialExecutor final : public Executor {
 public:
  int workers() const override { return 1; }
  void run(FunctionRef<void(int)> body) override { body(0); }
};

// Calls body(task, worker) once for each task in [0, tasks), handed out as workers become free.
template <class Body>
void parallel_tasks(Executor& executor, std::int64_t tasks, const Body& body) {
  std::atomic<std::int64_t> next{0};
  executor.run([&](int worker) {
    for (std::int64_t task = next++; task < tasks; task = next++) body(task, worker);
  });
}

}  // namespace forge
