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

// The numbers [0, tasks), handed out to workers as they become free.
class Tasks {
 public:
  explicit Tasks(std::int64_t tasks) : tasks_(tasks) {}

  // Calls body(task) for each number that this worker gets.
  template <class Body>
  void take(const Body& body) {
    for (std::int64_t task = next_++; task < tasks_; task = next_++) body(task);
  }

 private:
  std::atomic<std::int64_t> next_{0};
  std::int64_t tasks_;
};

// Calls body(task, worker) once for each task in [0, tasks).
template <class Body>
void parallel_tasks(Executor& executor, std::int64_t tasks, const Body& body) {
  Tasks all(tasks);
  executor.run([&](int worker) { all.take([&](std::int64_t task) { body(task, worker); }); });
}

}  // namespace forge
