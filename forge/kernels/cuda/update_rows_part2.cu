#include "forge/kernels/cuda/launch_rows.h"

template bool forge::cuda::launch_rows_of_part<2>(std::span<const WeightInMemory>, const RuleStep&, const Launch&);
