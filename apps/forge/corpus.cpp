#include "apps/forge/corpus.h"

#include <spdlog/fmt/fmt.h>

#include <utility>

#include "apps/forge/progress.h"
#include "forge/base/error.h"

namespace forge::app {
namespace {

constexpr std::int64_t kDefaultVocab = 4096;

Tokenizer make_tokenizer(const DataOptions& options, const std::filesystem::path& init, const TextSource& source) {
  if (options.tokenizer == "bytes") return Tokenizer::bytes();
  if (!options.tokenizer.empty()) return Tokenizer::load(options.tokenizer);
  if (!init.empty()) {
    const auto model = init / "tokenizer.model";
    check(std::filesystem::exists(model), "--init: ", init,
          " has no tokenizer.model; give --tokenizer with a SentencePiece model, or `bytes`");
    return Tokenizer::load(model);
  }
  const std::int64_t vocab = options.vocab_size.value_or(kDefaultVocab);
  say(fmt::format("training a tokenizer of {} pieces\n", vocab));
  return Tokenizer::train(source.documents, vocab);
}

}  // namespace

Corpus load_corpus(const DataOptions& options, const std::filesystem::path& init) {
  const TextSource source = read_text(options.paths, options.max_bytes);
  say(fmt::format("read {} bytes of text in {} files\n", source.bytes, source.documents.size()));
  if (const std::string note = source.skipped_note(); !note.empty()) say(fmt::format("{}\n", note));
  Tokenizer tokenizer = make_tokenizer(options, init, source);
  const std::int64_t vocab = options.vocab_size.value_or(tokenizer.size());
  check(vocab >= tokenizer.size(), "--vocab-size ", vocab, " is less than the tokenizer's ", tokenizer.size(),
        " pieces; leave it out or give more");
  std::vector<std::int32_t> tokens = encode_all(tokenizer, source.documents);
  say(fmt::format("{} tokens of {} kinds\n", tokens.size(), tokenizer.size()));
  return {source.bytes, std::move(tokenizer), std::move(tokens), vocab};
}

}  // namespace forge::app
