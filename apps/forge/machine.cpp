#include "apps/forge/machine.h"

#include <spdlog/fmt/fmt.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <new>

#include "forge/base/error.h"

namespace forge::app {
namespace {

constexpr const char* kLess = "ask for smaller sizes";

// The limit in a file of the kernel, or `otherwise` where the file is absent or says "max".
double limit_in(const char* file, double otherwise) {
  double bytes = 0;
  return std::ifstream(file) >> bytes ? bytes : otherwise;
}

}  // namespace

double memory_bytes() {
  struct sysinfo machine {};
  sysinfo(&machine);
  double bytes = (static_cast<double>(machine.totalram) + static_cast<double>(machine.totalswap)) * machine.mem_unit;
  rlimit limit{};
  getrlimit(RLIMIT_AS, &limit);
  if (limit.rlim_cur != RLIM_INFINITY) bytes = std::min(bytes, static_cast<double>(limit.rlim_cur));
  for (const char* file : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"})
    bytes = std::min(bytes, limit_in(file, bytes));
  return bytes;
}

void check_memory(double bytes, const std::string& what) {
  check(bytes <= memory_bytes(), fmt::format("memory: {} take {:.0f} bytes and this process may have {:.0f}; {}", what,
                                             bytes, memory_bytes(), kLess));
}

std::string sentence_of(const std::exception& error) {
  const std::string text = error.what();
  const std::string asked = "you tried to allocate ";
  if (const auto at = text.find(asked); at != std::string::npos)
    return fmt::format("memory: {} bytes more cannot be had; {}",
                       text.substr(at + asked.size(), text.find(' ', at + asked.size()) - at - asked.size()), kLess);
  if (dynamic_cast<const std::bad_alloc*>(&error)) return fmt::format("memory: there is no more; {}", kLess);
  if (const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&error))
    return fmt::format("{}: {}; check the path and its permissions", file->path1().string(), file->code().message());
  return text.substr(0, text.find('\n'));  // torch's errors carry a stack after the first line
}

}  // namespace forge::app
