#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace forge::app {

struct Document {
  std::filesystem::path path;
  std::string text;
};

// What was read, and how much in the folders was not text.
struct TextSource {
  std::vector<Document> documents;
  std::int64_t bytes = 0;
  std::int64_t skipped_binary = 0;  // files that hold a NUL byte
  std::int64_t skipped_not_utf8 = 0;

  std::string skipped_note() const;  // "", or a sentence with the counts
};

// Reads files, and folders with all their files in the order of their paths; what is hidden in a folder (.name), empty
// or not text is passed over. A file that is named itself must be text; it may be a pipe that somebody writes to. Stops
// before the document that would go above max_bytes (0: no limit), but never before the first. Throws Error where a
// path is absent or unreadable and where no text is found.
TextSource read_text(const std::vector<std::filesystem::path>& paths, std::int64_t max_bytes = 0);

bool is_utf8(std::string_view text);
// With U+FFFD for each byte that belongs to no character.
std::string as_utf8(std::string_view text);

}  // namespace forge::app
