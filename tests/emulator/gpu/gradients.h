#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "forge/torch/gradient.h"
#include "forge/torch/testing/tensors.h"

namespace forge::emulator {

// Products, rows and a dense gradient, scaled after the first of them.
inline void fill(Gradient& G, std::uint64_t seed, at::IntArrayRef sizes) {
  auto on_device = [&](const at::Tensor& t) { return t.to(G.place().device); };
  G.set_policy(Collapse::never, /*exact=*/true);
  G.add_outer(on_device(testing::random({3, sizes[0]}, seed)),
              on_device(testing::random({3, sizes[1]}, seed + 1, at::kBFloat16)));
  G.mul_(0.3);
  G.add_rows(on_device(at::tensor(std::vector<std::int64_t>{2, sizes[0] - 1, 2}, at::kLong)),
             on_device(testing::random({3, sizes[1]}, seed + 2)));
  G.add_dense(on_device(testing::random(sizes, seed + 3)));
}

}  // namespace forge::emulator
