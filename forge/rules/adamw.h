#pragma once

#include <cstdint>

#include "forge/base/inline.h"

namespace forge {

// Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101), as torch.optim.AdamW defines it:
//   m ← β₁ m + (1 − β₁) g                      first moment, bias c₁ = 1 − β₁ᵗ
//   v ← β₂ v + (1 − β₂) g²                     second moment, bias c₂ = 1 − β₂ᵗ
//   w ← (1 − lr · weight_decay) w − (lr / c₁) · m / (√v / √c₂ + eps)
struct AdamWOptions {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-2;
  bool maximize = false;
};

namespace rules {

struct AdamW {
  static constexpr const char* kName = "adamw";
  static constexpr int kMoments = 2;

  struct Step {
    float decay;  // 1 − lr · weight_decay
    float lerp;   // m ← base + lerp · (g − m), see `from_g`
    float beta2, one_minus_beta2;
    float inverse_sqrt_c2, eps;
    float step_size;  // lr / c₁
    bool from_g;      // base is g where β₁ ≤ 1/2 (the nearer end, as torch.lerp does), else m
    bool maximize;
  };
  // step: 1 at this weight's first update. Constants are computed in double and rounded once.
  static Step prepare(const AdamWOptions& options, std::int64_t step);

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &m = moment[0], &v = moment[1];
    if (s.maximize) g = -g;
    m = fma(V(s.lerp), g - m, s.from_g ? g : m);
    v = fma(V(s.one_minus_beta2) * g, g, V(s.beta2) * v);
    V denominator = fma(sqrt(v), V(s.inverse_sqrt_c2), V(s.eps));
    w = fma(V(s.decay), w, -(V(s.step_size) * m / denominator));
  }
};

}  // namespace rules
}  // namespace forge
