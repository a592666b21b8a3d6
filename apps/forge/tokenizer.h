#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/forge/text_source.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace forge::app {

// Text to ids and back: a SentencePiece model, or the 256 byte values.
// A model trained here gives decode(encode(text)) == text for all UTF-8 text without U+2581, which is SentencePiece's
// own sign for a space: nothing is normalised, indentation has pieces of its own, and what has no piece (a newline
// among them) is spelled in bytes.
class Tokenizer {
 public:
  static Tokenizer bytes();
  // Throws Error where the file is no SentencePiece model.
  static Tokenizer load(const std::filesystem::path& model);
  // A byte-pair encoding of vocab_size pieces: <unk>, <s>, </s>, 256 bytes, then what the text calls for. The same
  // documents give the same model.
  static Tokenizer train(const std::vector<Document>& documents, std::int64_t vocab_size);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  std::vector<std::int32_t> encode(std::string_view text) const;
  std::string decode(const std::vector<std::int32_t>& ids) const;
  std::int64_t size() const;
  // The ids that begin and end a document; bytes have none.
  std::optional<std::int32_t> bos() const;
  std::optional<std::int32_t> eos() const;
  // The model file's content, empty for bytes.
  std::string serialized() const;
  bool is_bytes() const { return !model_; }

 private:
  explicit Tokenizer(std::unique_ptr<sentencepiece::SentencePieceProcessor> model);
  std::unique_ptr<sentencepiece::SentencePieceProcessor> model_;
};

// All documents one after another, each closed by the end-of-document id where there is one.
std::vector<std::int32_t> encode_all(const Tokenizer& tokenizer, const std::vector<Document>& documents);

}  // namespace forge::app
