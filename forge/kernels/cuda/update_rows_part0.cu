#include "forge/kernels/cuda/launch_rows.h"

template bool forge::cuda::launch_rows_of_part<0>(std::span<const WeightInMemory>, const RuleStep&, const Launch&);
