// A rule of one's own: AdamW with cautious weight decay (Chen et al., arXiv 2510.12402), which decays a weight only
// where that does not work against the step:
//   m ← β₁ m + (1 − β₁) g,   c₁ = 1 − β₁ᵗ
//   v ← β₂ v + (1 − β₂) g²,  c₂ = 1 − β₂ᵗ
//   u = (m / c₁) / (√v / √c₂ + eps)
//   w ← w − lr · u − lr · weight_decay · w where u · w ≥ 0, else w ← w − lr · u
// From C++: forge_add_rule(cwd_adamw cwd_adamw.cpp). From Python: forge_optim.load_rule("cwd_adamw.cpp").
#include "forge/kernels/register_optimizer.h"

using namespace forge;

struct CwdAdamWOptions {
  static constexpr const char* kName = "CwdAdamW";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.1;

  static void fields(auto& o, auto&& f) { adam_fields(o, f); }
};

struct CwdAdamW {
  using Options = CwdAdamWOptions;
  static constexpr const char* kName = "cwd_adamw";
  static constexpr std::array kMoments = {Moment{"exp_avg"}, Moment{"exp_avg_sq", Sign::not_negative}};

  struct Step {
    rules::AdamMoments moments;
    float inverse_sqrt_c2, eps, step_size, keep;
  };
  static Step prepare(const Options& o, const Progress& p) {
    check_options(o, p);
    return {.moments = rules::AdamMoments(o.beta1, o.beta2),
            .inverse_sqrt_c2 = static_cast<float>(1 / std::sqrt(bias_correction(o.beta2, p.step))),
            .eps = static_cast<float>(o.eps),
            .step_size = static_cast<float>(o.lr / bias_correction(o.beta1, p.step)),
            .keep = static_cast<float>(1 - o.lr * o.weight_decay)};
  }

  template <class V>
  FORGE_INLINE static void update(V& w, V g, V* moment, const Step& s) {
    V &m = moment[0], &v = moment[1];
    s.moments.update(g, m, v);
    V change = V(s.step_size) * m / fma(sqrt(v), V(s.inverse_sqrt_c2), V(s.eps));
    w = fma(select(m * w < V(0.f), V(1.f), V(s.keep)), w, -change);
  }
};

FORGE_REGISTER_OPTIMIZER(CwdAdamWOptions, CwdAdamW);
