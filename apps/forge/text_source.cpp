#include "apps/forge/text_source.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "forge/base/error.h"

namespace forge::app {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> files_under(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (const fs::recursive_directory_iterator end; !error && entry != end; entry.increment(error)) {
    if (entry->path().filename().string().starts_with('.')) {
      entry.disable_recursion_pending();
    } else if (entry->is_regular_file()) {
      files.push_back(entry->path());
    }
  }
  check(!error, "--data: cannot list ", folder, " (", error.message(), "); check its permissions");
  std::sort(files.begin(), files.end());
  return files;
}

// Closed at the end.
class OpenFile {
 public:
  // Does not wait here for the writer of a pipe.
  explicit OpenFile(const fs::path& path) : file_(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {}
  ~OpenFile() {
    if (file_ >= 0) close(file_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  // Until there is something to read, or an end.
  bool wait(int milliseconds) const {
    pollfd events = {.fd = file_, .events = POLLIN, .revents = 0};
    return poll(&events, 1, milliseconds) > 0;
  }

  bool read_all(std::string& text) const {
    fcntl(file_, F_SETFL, 0);  // from now on reading waits
    std::string part(1 << 16, '\0');
    ssize_t length = 0;
    while ((length = read(file_, part.data(), part.size())) > 0) text.append(part, 0, static_cast<std::size_t>(length));
    return length == 0;
  }

 private:
  int file_;
};

std::string read_file(const fs::path& path) {
  constexpr int kPatience = 10'000;  // ms
  const OpenFile file(path);
  check(!fs::is_fifo(path) || file.wait(kPatience), "--data: nobody writes to the pipe ", path,
        "; start its writer first, or name a file");
  std::string text;
  check(file.read_all(text), "--data: cannot read ", path, "; check its permissions");
  return text;
}

// A device may never end, and a socket cannot be opened.
fs::file_type type_of(const fs::path& path) {
  std::error_code unreadable;
  const fs::file_type type = fs::status(path, unreadable).type();
  check(type != fs::file_type::not_found, "--data: there is no ", path, "; name text files or folders that hold some");
  check(type != fs::file_type::none, "--data: cannot read ", path, " (", unreadable.message(),
        "); check its permissions");
  const bool text = type == fs::file_type::regular || type == fs::file_type::directory || type == fs::file_type::fifo;
  check(text, "--data: ", path, " is no file, folder or pipe; name text files or folders that hold some");
  return type;
}

// Adds a file's text; false where that would go above the limit.
bool add(TextSource& source, const fs::path& path, bool named, std::int64_t max_bytes) {
  std::string text = read_file(path);
  const bool binary = text.find('\0') != std::string::npos;
  const bool utf8 = binary || is_utf8(text);
  check(!named || (!binary && utf8), "--data: ", path, " is not UTF-8 text; convert it, or name other files");
  check(!named || !text.empty(), "--data: ", path, " is empty; name a file with text");
  source.skipped_binary += binary;
  source.skipped_not_utf8 += !utf8;
  if (binary || !utf8 || text.empty()) return true;
  const auto size = static_cast<std::int64_t>(text.size());
  if (max_bytes > 0 && !source.documents.empty() && source.bytes + size > max_bytes) return false;
  source.bytes += size;
  source.documents.push_back({path, std::move(text)});
  return true;
}

// Length of the UTF-8 sequence that this byte begins, 0 where it begins none.
int sequence_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

// The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF.
bool is_second(unsigned char lead, unsigned char c) {
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return low <= c && c <= high;
}

// Length of the character that text begins with, 0 where it begins with none.
std::size_t character_length(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const std::size_t length = sequence_length(lead);
  if (length == 0 || length > text.size()) return 0;
  if (length > 1 && !is_second(lead, static_cast<unsigned char>(text[1]))) return 0;
  for (std::size_t k = 2; k < length; ++k) {
    if ((static_cast<unsigned char>(text[k]) & 0xC0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

bool is_utf8(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    const std::size_t length = character_length(text.substr(i));
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string as_utf8(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = character_length(text.substr(i));
    result += length == 0 ? "\uFFFD" : text.substr(i, length);
    i += std::max<std::size_t>(length, 1);
  }
  return result;
}

std::string TextSource::skipped_note() const {
  if (skipped_binary + skipped_not_utf8 == 0) return "";
  std::ostringstream note;
  note << "passed over " << skipped_binary << " binary files and " << skipped_not_utf8 << " that are not UTF-8";
  return note.str();
}

TextSource read_text(const std::vector<fs::path>& paths, std::int64_t max_bytes) {
  TextSource source;
  bool room = true;
  for (const fs::path& path : paths) {
    const fs::file_type type = type_of(path);
    const bool folder = type == fs::file_type::directory;
    for (const fs::path& file : folder ? files_under(path) : std::vector<fs::path>{path}) {
      room = room && add(source, file, !folder, max_bytes);
    }
  }
  const std::string note = source.skipped_note();
  check(!source.documents.empty(), "--data: no text in what was named", note.empty() ? "" : " (" + note + ")",
        "; name UTF-8 files or folders that hold some");
  return source;
}

}  // namespace forge::app
