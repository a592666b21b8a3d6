// A weight is trained without its gradient ever being stored.
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/randn.h>

#include <cstdio>

#include "forge/torch/functional.h"
#include "forge/torch/optimizer.h"

int main() {
  at::Tensor W = at::randn({256, 512}).mul_(0.02).requires_grad_();
  at::Tensor x = at::randn({16, 512}), target = at::randn({16, 256});

  forge::AdamW opt({W}, {.lr = 1e-2});
  for (int step = 0; step < 50; ++step) {
    opt.zero_grad();
    at::Tensor loss = at::mse_loss(forge::linear(x, W), target);
    loss.backward();                                     // records (dY, X); W.grad() stays undefined
    at::Tensor norm = forge::clip_grad_norm_({W}, 1.0);  // exact, without multiplying dYᵀX out
    opt.step();                                          // the fused update
    if (step % 10 == 0) std::printf("step %2d  loss %.4f  norm %.3f\n", step, loss.item<double>(), norm.item<double>());
  }
}
