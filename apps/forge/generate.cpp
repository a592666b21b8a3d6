#include "apps/forge/generate.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/multinomial.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <vector>

#include "forge/base/error.h"

namespace forge::app {
namespace {

// Scores (vocab) of what follows; recomputed from the start each time, which a sample's length can afford.
at::Tensor next_scores(const Llama& model, const std::vector<std::int32_t>& ids) {
  const auto length = std::min<std::int64_t>(model.config().max_positions, static_cast<std::int64_t>(ids.size()));
  const std::vector<std::int64_t> window(ids.end() - length, ids.end());
  return model.logits(at::tensor(window, at::kLong).unsqueeze(0)).select(0, 0).select(0, -1).to(at::kCPU, at::kFloat);
}

std::int64_t pick(const at::Tensor& scores, double temperature, at::Generator& random) {
  if (temperature == 0) return scores.argmax().item<std::int64_t>();
  const at::Tensor below_best = scores.sub(scores.max()).to(at::kDouble);  // at most 0, also over any temperature
  const at::Tensor shares = at::softmax(below_best.div(temperature), -1);
  check(at::isfinite(shares).all().item<bool>(), "--sample: the model's scores are not finite; nothing can be drawn");
  return at::multinomial(shares, 1, false, random).item<std::int64_t>();
}

}  // namespace

std::string generate(const Llama& model, const Tokenizer& tokenizer, const std::string& prompt,
                     const SampleOptions& options) {
  at::NoGradGuard no_grad;
  at::Generator random = at::detail::createCPUGenerator(options.seed);
  std::vector<std::int32_t> ids = tokenizer.encode(prompt);
  check(!ids.empty(), "--sample: the prompt is empty; give it at least one character");
  for (std::int64_t i = 0; i < options.tokens; ++i) {
    const auto next = static_cast<std::int32_t>(
        pick(next_scores(model, ids).narrow(0, 0, tokenizer.size()), options.temperature, random));
    if (next == tokenizer.eos()) break;
    ids.push_back(next);
  }
  return tokenizer.decode(ids);
}

}  // namespace forge::app
