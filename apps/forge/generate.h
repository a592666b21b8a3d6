#pragma once

#include <cstdint>
#include <string>

#include "apps/forge/llama.h"
#include "apps/forge/tokenizer.h"

namespace forge::app {

struct SampleOptions {
  std::int64_t tokens = 120;
  double temperature = 0.8;  // 0: always the likeliest token
  std::uint64_t seed = 0;
};

// The prompt and what the model adds to it, until the end of the document or of the tokens asked for.
std::string generate(const Llama& model, const Tokenizer& tokenizer, const std::string& prompt,
                     const SampleOptions& options);

}  // namespace forge::app
