#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "apps/forge/tokenizer.h"
#include "apps/forge/train_options.h"

namespace forge::app {

// Text as ids, with the tokenizer that made them.
struct Corpus {
  std::int64_t text_bytes = 0;
  Tokenizer tokenizer;
  std::vector<std::int32_t> tokens;
  std::int64_t vocab = 0;  // rows of an embedding for it: --vocab-size where given, else the tokenizer's size
};

// Reads the data, then loads or trains the tokenizer; says on stdout what it found. Without --tokenizer, that of `init`
// is used; Error where there is none. An empty `init` is none: a tokenizer is trained.
Corpus load_corpus(const DataOptions& options, const std::filesystem::path& init = {});

}  // namespace forge::app
