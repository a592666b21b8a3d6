#include "forge/torch/update_tensor.h"

#include <ATen/ATen.h>

#include "forge/torch/gradient.h"
#include "forge/torch/testing/tensors.h"

namespace forge {
namespace {

using testing::random;
using testing::same_bits;

TEST(UpdatesTogether, RunEvenWhereAnythingElseFails) {
  const RuleStep rule = RuleStep::of<rules::AdamW>(rules::AdamW::prepare(AdamWOptions{}, 1));
  at::Tensor w = random({40}, 1), together_w = w.clone(), before = w.clone();
  Gradient G({40}, at::kFloat, at::kCPU);
  G.add_dense(random({40}, 2));
  auto update = [&](const at::Tensor& weight, UpdatesTogether* together) {
    std::vector<StoredTensor> moments(2);
    for (StoredTensor& m : moments) m = at::zeros_like(weight);
    update_tensor(weight, {}, moments, G.expression(), rule, false, {}, together);
    return moments;
  };
  auto moments = update(w, nullptr);
  EXPECT_FALSE(same_bits(w, before));

  std::vector<StoredTensor> together_moments;  // live until the updates have run
  {
    UpdatesTogether together;
    together_moments = update(together_w, &together);
    EXPECT_TRUE(same_bits(together_w, before));
  }
  EXPECT_TRUE(same_bits(together_w, w));
  for (std::size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(together_moments[i].values, moments[i].values));
}

}  // namespace
}  // namespace forge
