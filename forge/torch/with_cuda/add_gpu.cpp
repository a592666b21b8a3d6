// In builds with CUDA: torch's CUDA devices are GPUs that have kernels.
#include "forge/torch/device_kernels.h"

namespace forge {
namespace {

const bool added = add_gpu(at::kCUDA, cuda::operations());

}  // namespace
}  // namespace forge
