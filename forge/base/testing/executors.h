#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "forge/base/executor.h"

namespace forge::testing {

// Several workers on one thread, the last one first.
class ReverseExecutor final : public Executor {
 public:
  explicit ReverseExecutor(int workers) : workers_(workers) {}
  int workers() const override { return workers_; }
  void run(FunctionRef<void(int)> body) override {
    for (int worker = workers_ - 1; worker >= 0; --worker) body(worker);
  }

 private:
  int workers_;
};

// Threads that sleep between runs: thousands of small runs stay cheap on a machine that is busy with something else,
// where OpenMP's would spin. The caller is worker 0. Allocates in its constructor only.
class SleepingThreads final : public Executor {
 public:
  explicit SleepingThreads(int workers) : workers_(workers) {
    for (int worker = 1; worker < workers; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }
  ~SleepingThreads() override {
    {
      std::lock_guard lock(mutex_);
      body_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int workers() const override { return workers_; }
  void run(FunctionRef<void(int)> body) override {
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      busy_ = workers_ - 1;
      ++round_;
    }
    wake_.notify_all();
    body(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void serve(int worker) {
    for (int seen = 0;;) {
      FunctionRef<void(int)>* body = nullptr;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        body = body_;
      }
      if (!body) return;
      (*body)(worker);
      std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  int workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  FunctionRef<void(int)>* body_ = nullptr;
  int busy_ = 0, round_ = 0;
  std::vector<std::thread> threads_;
};

struct NamedExecutor {
  std::string name;
  Executor& executor;
};

// 1, 2 and 3 workers: on one thread, on several, and on one in an unusual order.
inline const std::vector<NamedExecutor>& executors() {
  static SerialExecutor serial;
  static SleepingThreads threads(2);
  static ReverseExecutor reverse(3);
  static const std::vector<NamedExecutor> all = {{"serial", serial}, {"2 threads", threads}, {"3 in reverse", reverse}};
  return all;
}

}  // namespace forge::testing
