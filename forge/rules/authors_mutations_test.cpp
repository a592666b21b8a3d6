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

void mistakes_of_authors() {
  using S = Scalar;
  Mistakes<Lion>().options("betas swapped", betas_swapped).update("moment first", [](S& w, S g, S* m, auto& s) {
    m[0] = lerp(m[0], g, s.to_g);
    w = fma(S(s.decay), w, S(s.minus_lr) * sign_of(lerp(m[0], g, s.direction)));
  });
  Mistakes<Signum>()
      .update("sign of the old buffer",
              [](S& w, S g, S* m, auto& s) {
                w = fma(S(s.decay), w, S(s.minus_lr) * sign_of(m[0]));
                m[0] = lerp(m[0], g, s.to_g);
              })
      .step("decay without lr", [](auto& s, auto& o, double) { s.decay = static_cast<float>(1 - o.weight_decay); });
  Mistakes<Adan>()
      .step("first difference is the gradient", [](auto& s, auto&, double) { s.first = false; })
      .options("prox ignored", [](auto& o, auto&) { o.no_prox = true; })
      .options("off by one", [](auto&, Progress& p) { p.step += p.step > 1; })
      .options("two betas swapped", [](auto& o, auto&) { std::swap(o.beta2, o.beta3); });
  Mistakes<AdEMAMix>()
      .options("alpha does not warm up", [](auto& o, auto&) { o.alpha_warmup = 0; })
      .options("beta3 does not warm up", [](auto& o, auto&) { o.beta3_warmup = 0; })
      .options("off by one", off_by_one)
      .step("slow average corrected", [](auto& s, auto& o, double t) {
        s.of_slow /= static_cast<float>(1 - std::pow(AdEMAMix::beta3_at(o, static_cast<int>(t)), t));
      });
  Mistakes<Adopt>()
      .update("new second moment",
              [](S& w, S g, S* m, auto& s) {
                S v = m[1], decayed = fma(S(s.decay.l2), w, s.maximize ? -g : g);
                if (!s.first) s.moments.update_second(decayed, v);
                m[1] = v;
                Adopt::update(w, g, m, s);
                if (!s.first) m[1] = v;
              })
      .step("clip off by one",
            [](auto& s, auto& o, double t) { s.clip = o.clip_value ? s.clip : float(std::pow(t, 0.25)); })
      .options("other kind of decay", [](auto& o, auto&) { o.decouple = !o.decouple; })
      .step("the first update is one", [](auto& s, auto&, double) { s.first = false; });
  auto forgets = [](auto&, Progress& p) { p.scalars[0] = 0; };
  auto no_warmup = [](auto& o, auto&) { o.warmup_steps = 0; };
  auto momentum_1 = [](auto& s, auto& o, double) { s.average.minus_rate_of_y = static_cast<float>(-o.lr); };
  Mistakes<ScheduleFreeAdamW>()
      .options("the sum is not remembered", forgets)
      .options("no warm-up", no_warmup)
      .step("y steps as z does", momentum_1)
      .step("second moment not corrected", [](auto& s, auto&, double) { s.inverse_sqrt_c2 = 1; })
      .update("decay at z", [](S& w, S g, S* m, auto s) {
        s.moments.update_second(g, m[1]);
        S u = g / fma(sqrt(m[1]), S(s.inverse_sqrt_c2), S(s.eps));
        s.average.update(w, m[0], fma(S(s.weight_decay), w + m[0], u));
      });
  Mistakes<ScheduleFreeAdamWInner>()
      .options("the sum is not remembered", forgets)
      .step("inner moment not corrected", [](auto& s, auto&, double) { s.inverse_c1 = 1; });
  Mistakes<ScheduleFreeSGD>()
      .options("no warm-up", no_warmup)
      .options("the largest rate is not remembered", [](auto&, Progress& p) { p.scalars[0] /= 2; })
      .update("d before y", [](S& w, S g, S* m, auto& s) {
        S u = fma(S(s.weight_decay), w, g), y = w;
        s.average.update(y, m[0], u);
        w = w + fma(S(s.average.minus_rate_of_y), u, S(s.average.c) * m[0]);
      });
  Mistakes<SophiaG>()
      .options("batch size ignored", [](auto& o, auto&) { o.bs = 1; })
      .options("maximize ignored", maximize_ignored)
      .update("not clipped", [](S& w, S g, S* m, auto& s) {
        m[0] = lerp(m[0], s.maximize ? -g : g, s.to_g);
        w = fma(S(s.decay), w, S(s.minus_lr) * m[0] / fma(S(s.scale_of_h), m[1], S(1e-15f)));
      });
  Mistakes<SophiaHessian>().options("betas swapped", betas_swapped).update("not squared", [](S&, S g, S* m, auto& s) {
    s.moments.update_second(sqrt(abs(g)), m[1]);
  });
  auto bare_gamma = [](auto& s, auto& o, double) { s.correction = static_cast<float>(o.gamma); };
  Mistakes<Mars>()
      .step("β₁ / (1 − β₁) forgotten", bare_gamma)
      .options("always approximate", [](auto& o, auto&) { o.is_approx = true; })
      .update("second moment of g", [](S& w, S g, S* m, auto& s) {
        S v = m[1];
        Mars::update(w, g, m, s);
        s.moments.update_second(g, v);
        m[1] = v;
      });
  Mistakes<MarsAmsgrad>()
      .step("β₁ / (1 − β₁) forgotten", bare_gamma)
      .update("not the largest so far", [](S& w, S g, S* m, auto& s) {
        m[3] = zero;
        MarsAmsgrad::update(w, g, m, s);
      });
  auto no_bias = [](auto& o, auto&) { o.correct_bias = false; };
  Mistakes<Grams>()
      .step("eps corrected", eps_corrected)
      .options("no bias correction", no_bias)
      .update("sign of the moment", [](S& w, S g, S* m, auto& s) {
        s.moments.update(g, m[0], m[1]);
        w = fma(S(s.decay), w, -(S(s.step_size) * m[0] / (sqrt(m[1]) + S(s.eps))));
      });
  Mistakes<CautiousAdamW>()
      .step("eps corrected", eps_corrected)
      .options("no bias correction", no_bias)
      .update("mask of the old moment", [](S& w, S g, S* m, auto& s) {
        S agrees = m[0] * g;
        s.moments.update(g, m[0], m[1]);
        S direction = select(agrees > zero, m[0], zero);
        w = fma(S(s.decay), w, -(S(s.step_size) * direction / (sqrt(m[1]) + S(s.eps))));
      });
}

TEST(Closeness, MutationsOfTheAuthorsRulesAreCaught) {
  mistakes_of_authors();
  expect_two_mutants_each<Lion, void>();
}

}  // namespace
}  // namespace forge::testing
