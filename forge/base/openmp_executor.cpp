#include "forge/base/openmp_executor.h"

#include <omp.h>

namespace forge {

OpenMpExecutor::OpenMpExecutor(int threads) : threads_(threads > 0 ? threads : omp_get_max_threads()) {}

void OpenMpExecutor::run(FunctionRef<void(int)> body) {
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
  for (int worker = 0; worker < threads_; ++worker) body(worker);
}

}  // namespace forge
