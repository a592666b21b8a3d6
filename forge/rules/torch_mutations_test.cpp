#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "forge/base/scalar.h"
#include "forge/base/testing/closeness.h"
#include "forge/rules/list.h"
#include "forge/rules/testing/mistakes.h"

namespace forge::testing {
namespace {

using namespace rules;

template <class Rule>
using Mistakes = MistakesSeenBy<Rule, Closeness>;

void mistakes_of_sgd() {
  Mistakes<Sgd>().options("maximize ignored", maximize_ignored).step("decay maximized", [](auto& s, auto&, double) {
    if (s.maximize) s.weight_decay = -s.weight_decay;
  });
  Mistakes<SgdMomentum>()
      .options("maximize ignored", maximize_ignored)
      .options("dampening ignored", [](auto& o, auto&) { o.dampening = 0; })
      .options("nesterov ignored", [](auto& o, auto&) { o.nesterov = false; })
      .step("first step dampened", [](auto& s, auto& o, double) { s.add = static_cast<float>(1 - o.dampening); })
      .options("the second step too is a first", [](auto&, auto& p) { p.step = p.step > 2 ? p.step - 1 : 1; })
      .step("nesterov without momentum", [](auto& s, auto&, double) { s.momentum = 1; })
      .update("nesterov of the old moment",
              [](auto& w, auto g, auto* m, auto& s) {
                Scalar b = m[0], before = w;
                SgdMomentum::update(w, g, m, s);
                g = fma(Scalar(s.weight_decay), before, s.maximize ? -g : g);
                if (s.nesterov) w = before + Scalar(s.minus_lr) * (g + Scalar(s.momentum) * b);
              })
      .update("decay decoupled",
              [](auto& w, auto g, auto* m, auto s) {
                w = w + Scalar(s.minus_lr) * Scalar(s.weight_decay) * w;
                s.weight_decay = 0;
                SgdMomentum::update(w, g, m, s);
              })
      .step("decay maximized", [](auto& s, auto&, double) {
        if (s.maximize) s.weight_decay = -s.weight_decay;
      });
}

// AdamW with its last line replaced.
template <class F>
struct AdamWEndingIn {
  void operator()(Scalar& w, Scalar g, Scalar* m, const AdamW::Step& s) const {
    Scalar old_m = m[0], old_v = m[1], decayed = Scalar(s.decay.keep) * w;
    s.moments.update(s.maximize ? -g : g, m[0], m[1]);
    w = F{}(decayed, m[0], m[1], old_m, old_v, s);
  }
};
template <class F>
AdamWEndingIn<F> ending_in(F) {
  return {};
}
Scalar denominator(Scalar v, const AdamW::Step& s) { return sqrt(v) * Scalar(s.inverse_sqrt_c2) + Scalar(s.eps); }

void mistakes_of_adam() {
  using S = Scalar;
  using Step = AdamW::Step;
  Mistakes<Adam>()
      .options("off by one", off_by_one)
      .options("betas swapped", betas_swapped)
      .update("decay decoupled", [](S& w, S g, S* m, Adam::Step s) {
        S decayed = w - S(s.step_size) * S(s.decay.l2) * w;
        s.decay.l2 = 0;
        Adam::update(w = decayed, g, m, s);
      });
  Mistakes<AdamAmsgrad>()
      .update("not the largest so far",
              [](auto& w, auto g, auto* m, auto& s) {
                m[2] = zero;
                AdamAmsgrad::update(w, g, m, s);
              })
      .step("eps corrected", [](auto& s, auto& o, double t) { eps_corrected(s, o, t), s.inverse_sqrt_c2 = 1; });
  Mistakes<AdamWAmsgrad>().options("off by one", off_by_one).update("not used", [](S& w, S g, S* m, auto& s) {
    S before = w;
    AdamWAmsgrad::update(w, g, m, s);
    w = fma(S(s.decay.keep), before, -(S(s.step_size) * m[0] / (sqrt(m[1]) * S(s.inverse_sqrt_c2) + S(s.eps))));
  });
  Mistakes<AdamW>()
      .options("off by one", off_by_one)
      .options("betas swapped", betas_swapped)
      .options("maximize ignored", maximize_ignored)
      .step("no bias correction", [](Step& s, auto& o, double) { s.step_size = static_cast<float>(o.lr); })
      .step("second moment not corrected", [](Step& s, auto&, double) { s.inverse_sqrt_c2 = 1; })
      .update("eps inside the root", ending_in([](S w, S m, S v, S, S, const Step& s) {
                return w - S(s.step_size) * m / sqrt(v * S(s.inverse_sqrt_c2) * S(s.inverse_sqrt_c2) + S(s.eps));
              }))
      .update("eps corrected", ending_in([](S w, S m, S v, S, S, const Step& s) {
                return w - S(s.step_size) * m / ((sqrt(v) + S(s.eps)) * S(s.inverse_sqrt_c2));
              }))
      .update("decay after the step", ending_in([](S w, S m, S v, S, S, const Step& s) {
                return w - S(s.decay.keep) * S(s.step_size) * m / denominator(v, s);
              }))
      .update("no decay", ending_in([](S w, S m, S v, S, S, const Step& s) {
                return w / S(s.decay.keep) - S(s.step_size) * m / denominator(v, s);
              }))
      .update("old first moment", ending_in([](S w, S, S v, S old_m, S, const Step& s) {
                return w - S(s.step_size) * old_m / denominator(v, s);
              }))
      .update("old second moment", ending_in([](S w, S m, S, S, S old_v, const Step& s) {
                return w - S(s.step_size) * m / denominator(old_v, s);
              }))
      .update("wrong sign",
              ending_in([](S w, S m, S v, S, S, const Step& s) { return w + S(s.step_size) * m / denominator(v, s); }));
}

void mistakes_of_torch() {
  using S = Scalar;
  Mistakes<NAdam>()
      .options("off by one", off_by_one)
      .options("the product is not remembered", [](auto&, Progress& p) { p.scalars[0] = 1; })
      .options("other kind of decay", other_kind_of_decay)
      .step("μ of this update twice", [](NAdam::Step& s, auto& o, double t) {
        s.of_m *= static_cast<float>(NAdam::mu(o, static_cast<int>(t)) / NAdam::mu(o, static_cast<int>(t) + 1));
      });
  Mistakes<RAdam>()
      .step("eps corrected", eps_corrected)
      .step("never rectified", [](auto& s, auto&, double) { s.rectified = false; })
      .options("other kind of decay", other_kind_of_decay)
      .options("off by one", off_by_one);
  Mistakes<Adamax>()
      .step("no bias correction", [](auto& s, auto& o, double) { s.step_size = static_cast<float>(o.lr); })
      .update("eps after the maximum", [](S& w, S g, S* m, Adamax::Step s) {
        S eps(std::exchange(s.eps, 0.f)), before = w;
        Adamax::update(w, g, m, s);
        w = before - S(s.step_size) * m[0] / (m[1] + eps);
      });
  Mistakes<Adagrad>()
      .step("no initial value", [](auto& s, auto&, double) { s.initial = 0; })
      .step("lr_decay off by one",
            [](auto& s, auto& o, double t) { s.step_size = static_cast<float>(o.lr / (1 + t * o.lr_decay)); })
      .options("decay is not maximized", [](auto& o, auto&) { o.weight_decay = -o.weight_decay * !o.maximize; });
  Mistakes<Adadelta>()
      .update("accumulated first",
              [](S& w, S g, S* m, auto& s) {
                S before = w;
                Adadelta::update(w, g, m, s);
                g = fma(S(s.weight_decay), before, s.maximize ? -g : g);
                w = before + S(s.minus_lr) * (sqrt(m[1] + S(s.eps)) / sqrt(m[0] + S(s.eps)) * g);
              })
      .step("no eps", [](auto& s, auto&, double) { s.eps = 0; });
  Mistakes<RMSprop>()
      .options("maximize ignored", maximize_ignored)
      .update("old moment",
              [](S& w, S g, S* m, auto& s) {
                S before = w, old = m[0];
                RMSprop::update(w, g, m, s);
                w = before + (w - before) * (sqrt(m[0]) + S(s.eps)) / (sqrt(old) + S(s.eps));
              })
      .step("eps forgotten", [](auto& s, auto&, double) { s.eps = 0; });
  Mistakes<RMSpropMomentum>()
      .step("buffer is an average", [](auto& s, auto&, double) { s.lr *= 1 - s.momentum; })
      .update("eps inside the root", [](S& w, S g, S* m, auto& s) {
        g = fma(S(s.weight_decay), w, s.maximize ? -g : g);
        m[0] = fma(S(s.one_minus_alpha) * g, g, S(s.alpha) * m[0]);
        m[1] = fma(S(s.momentum), m[1], g / sqrt(m[0] + S(s.eps)));
        w = w - S(s.lr) * m[1];
      });
  Mistakes<RMSpropCentered>()
      .options("maximize ignored", maximize_ignored)
      .update("not centered",
              [](S& w, S g, S* m, auto& s) {
                S before = w;
                RMSpropCentered::update(w, g, m, s);
                g = fma(S(s.weight_decay), before, s.maximize ? -g : g);
                w = before - S(s.lr) * g / (sqrt(m[0]) + S(s.eps));
              })
      .step("mean with the other end's weight", [](auto& s, auto& o, double) { s.to_g = Lerp(o.alpha); });
  Mistakes<RMSpropCenteredMomentum>()
      .step("mean with the other end's weight", [](auto& s, auto& o, double) { s.to_g = Lerp(o.alpha); })
      .update("buffer and mean exchanged", [](S& w, S g, S* m, auto& s) {
        std::swap(m[1], m[2]);
        RMSpropCenteredMomentum::update(w, g, m, s);
        std::swap(m[1], m[2]);
      });
  Mistakes<Rprop>()
      .update("the gradient that turned is kept",
              [](S& w, S g, S* m, auto& s) {
                Rprop::update(w, g, m, s);
                m[0] = s.maximize ? -g : g;
              })
      .step("no largest size", [](auto& s, auto&, double) { s.largest = std::numeric_limits<float>::infinity(); })
      .step("begins at no size", [](auto& s, auto&, double) { s.initial = s.smallest; })
      .step("etas exchanged", [](auto& s, auto&, double) { std::swap(s.etaminus, s.etaplus); });
  Mistakes<Asgd>()
      .options("η of this update", [](auto& o, Progress& p) { p.scalars = Asgd::next(o, p).scalars, ++p.step; })
      .options("off by one", [](auto& o, Progress& p) { p.scalars = Asgd::next(o, p.step + 1).scalars; })
      .update("average of the old weight", [](S& w, S g, S* m, auto& s) {
        S average = lerp(m[0], w, s.to_w);
        Asgd::update(w, g, m, s);
        m[0] = average;
      });
}

TEST(Closeness, MutationsOfTorchsRulesAreCaught) {
  mistakes_of_sgd();
  mistakes_of_adam();
  mistakes_of_torch();
  expect_two_mutants_each<Sgd, Lion>();
}

}  // namespace
}  // namespace forge::testing
