#include <vector>

#include "forge/base/integers.h"
#include "forge/kernels/cuda/arguments.h"
#include "forge/kernels/cuda/ffma.cuh"
#include "forge/kernels/cuda/sums.cuh"
#include "forge/kernels/cuda/tiles.cuh"
#include "tests/emulator/mutants/parts.h"

namespace forge {

void launch_store(const Matrix& D, const Expression& G) {
  using namespace cuda;
  launch_kernel(store_tiles<FfmaChain>,
                {static_cast<unsigned>(ceil_div(G.in, kTile)), static_cast<unsigned>(ceil_div(G.out, kTile)), 1},
                kChainThreads, kChainShared, nullptr,
                StoreArguments{weight_arguments<1>(D, {}, {}), chain_arguments(G, {})});
}

double launch_norm(const Expression& G) {
  using namespace cuda;
  std::vector<double> row_sums(static_cast<std::size_t>(G.out));
  double sum = 0;
  launch_kernel(square_rows<FfmaChain>, {static_cast<unsigned>(ceil_div(G.out, kTile)), 1, 1}, kChainThreads,
                kChainShared, nullptr, NormArguments{row_sums.data(), chain_arguments(G, {})});
  launch_kernel(add_rows_sums, {1, 1, 1}, 32, 0, nullptr, AddArguments{row_sums.data(), G.out, 1, &sum});
  return sum;
}

}  // namespace forge
