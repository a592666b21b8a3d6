#include "forge/base/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

#include "forge/base/openmp_executor.h"
#include "forge/base/testing/executors.h"

namespace forge {
namespace {

struct ExecutorCase {
  const char* name;
  std::shared_ptr<Executor> executor;
  int workers;
};

const std::vector<ExecutorCase>& executor_cases() {
  static const std::vector<ExecutorCase> all = {{"serial", std::make_shared<SerialExecutor>(), 1},
                                                {"reverse, 1", std::make_shared<testing::ReverseExecutor>(1), 1},
                                                {"reverse, 5", std::make_shared<testing::ReverseExecutor>(5), 5},
                                                {"sleeping, 3", std::make_shared<testing::SleepingThreads>(3), 3},
                                                {"OpenMP, 1", std::make_shared<OpenMpExecutor>(1), 1},
                                                {"OpenMP, 2", std::make_shared<OpenMpExecutor>(2), 2},
                                                {"OpenMP, 3", std::make_shared<OpenMpExecutor>(3), 3}};
  return all;
}

TEST(Executor, CallsItsBodyOnceForEachWorker) {
  for (const ExecutorCase& c : executor_cases()) {
    SCOPED_TRACE(c.name);
    ASSERT_EQ(c.executor->workers(), c.workers);
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(c.workers));
    c.executor->run([&](int worker) { ++calls[static_cast<std::size_t>(worker)]; });
    for (const auto& n : calls) EXPECT_EQ(n, 1);
  }
}

TEST(Executor, HandsOutEachTaskOnce) {
  for (const ExecutorCase& c : executor_cases()) {
    for (std::int64_t tasks : {0, 1, 2, 7, 100}) {
      SCOPED_TRACE(::testing::Message() << c.name << ", " << tasks << " tasks");
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(tasks));
      std::atomic<bool> workers_are_known = true;
      parallel_tasks(*c.executor, tasks, [&](std::int64_t task, int worker) {
        ++calls[static_cast<std::size_t>(task)];
        if (worker < 0 || worker >= c.workers) workers_are_known = false;
      });
      for (const auto& n : calls) EXPECT_EQ(n, 1);
      EXPECT_TRUE(workers_are_known);
    }
  }
}

TEST(Executor, ReverseStartsWithTheLastWorker) {
  testing::ReverseExecutor executor(3);
  std::vector<int> order;
  executor.run([&](int worker) { order.push_back(worker); });
  EXPECT_EQ(order, (std::vector<int>{2, 1, 0}));
}

TEST(Executor, OpenMpTakesTheMachineWhereNoNumberIsGiven) { EXPECT_GE(OpenMpExecutor().workers(), 1); }

}  // namespace
}  // namespace forge
