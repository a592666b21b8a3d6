#pragma once

#include <sstream>
#include <stdexcept>

namespace forge {

// What every public entry throws on a wrong input: one sentence that names the operation, what arrived and what was
// expected. Nothing has been written when it is thrown.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(parts...);
}

}  // namespace forge
