#include "apps/forge/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <unordered_map>

#include "forge/base/error.h"

namespace forge::app {
namespace {

using sentencepiece::SentencePieceProcessor;

constexpr int kBytes = 256;

// SentencePiece passes over longer lines without a word (its max_sentence_length).
constexpr std::size_t kLongestLine = 4192;

// Where to cut a line for training: in front of the last space within the limit, else between two characters.
std::size_t cut(std::string_view line) {
  if (line.size() <= kLongestLine) return line.size();
  const std::size_t space = line.rfind(' ', kLongestLine);
  if (space != std::string_view::npos && space > 0) return space;
  std::size_t end = kLongestLine;
  while ((static_cast<unsigned char>(line[end]) & 0xC0) == 0x80) --end;
  return end;
}

// Hands out the lines of all documents, long ones in parts, so that all text counts. The newline itself stays a byte,
// so no piece reaches across lines.
class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<Document>& documents) : documents_(documents) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    line_.clear();
    while (line_.empty() && document_ < documents_.size()) take_line();
    done_ = line_.empty();
  }

 private:
  void take_line() {
    const std::string& text = documents_[document_].text;
    const std::size_t end = std::min(text.find('\n', offset_), text.size());
    line_ = text.substr(offset_, cut(std::string_view(text).substr(offset_, end - offset_)));
    offset_ += line_.size();
    if (offset_ == end) ++offset_;
    if (offset_ >= text.size()) {
      ++document_;
      offset_ = 0;
    }
  }

  const std::vector<Document>& documents_;
  std::size_t document_ = 0, offset_ = 0;
  std::string line_;
  bool done_ = false;
};

std::unordered_map<std::string, std::string> training_options(std::int64_t vocab_size) {
  return {{"model_type", "bpe"},
          {"vocab_size", std::to_string(vocab_size)},
          {"byte_fallback", "true"},
          {"normalization_rule_name", "identity"},
          {"remove_extra_whitespaces", "false"},
          {"add_dummy_prefix", "false"},
          {"allow_whitespace_only_pieces", "true"},
          {"split_digits", "true"},
          {"character_coverage", "0.9995"},
          {"max_sentence_length", std::to_string(kLongestLine)},
          {"minloglevel", "2"}};
}

std::optional<std::int32_t> where_valid(int id) { return id < 0 ? std::nullopt : std::optional<std::int32_t>(id); }

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<SentencePieceProcessor> model) : model_(std::move(model)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::bytes() { return Tokenizer(nullptr); }

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  auto model = std::make_unique<SentencePieceProcessor>();
  const bool loaded = std::filesystem::is_regular_file(path) && model->Load(path.string()).ok();
  check(loaded, "--tokenizer: ", path,
        " is not a readable SentencePiece model; name a tokenizer.model, `bytes`, or leave the flag out to train one");
  return Tokenizer(std::move(model));
}

Tokenizer Tokenizer::train(const std::vector<Document>& documents, std::int64_t vocab_size) {
  Lines lines(documents);
  std::string serialized;
  const auto status = sentencepiece::SentencePieceTrainer::Train(training_options(vocab_size), &lines, &serialized);
  auto model = std::make_unique<SentencePieceProcessor>();
  check(status.ok() && model->LoadFromSerializedProto(serialized).ok(), "--vocab-size: the data does not yield ",
        vocab_size, " pieces; give --vocab-size a smaller number above 259, more data, or --tokenizer bytes");
  return Tokenizer(std::move(model));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  if (model_) return model_->EncodeAsIds({text.data(), text.size()});
  const auto* first = reinterpret_cast<const unsigned char*>(text.data());
  return {first, first + text.size()};
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  if (model_) return model_->DecodeIds(ids);
  return {ids.begin(), ids.end()};
}

std::int64_t Tokenizer::size() const { return model_ ? model_->GetPieceSize() : kBytes; }

std::optional<std::int32_t> Tokenizer::bos() const { return model_ ? where_valid(model_->bos_id()) : std::nullopt; }

std::optional<std::int32_t> Tokenizer::eos() const { return model_ ? where_valid(model_->eos_id()) : std::nullopt; }

std::string Tokenizer::serialized() const { return model_ ? model_->serialized_model_proto() : ""; }

std::vector<std::int32_t> encode_all(const Tokenizer& tokenizer, const std::vector<Document>& documents) {
  std::vector<std::int32_t> tokens;
  for (const Document& document : documents) {
    const auto ids = tokenizer.encode(document.text);
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    if (const auto eos = tokenizer.eos()) tokens.push_back(*eos);
  }
  return tokens;
}

}  // namespace forge::app
