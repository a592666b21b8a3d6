#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace forge::app {

// One JSON object a line, each flushed, so that a run that was stopped has its log. A line that cannot be written stops
// no training: check_written() tells.
class RunLog {
 public:
  // An empty path logs nothing. Throws Error where the file cannot be written.
  explicit RunLog(const std::filesystem::path& path);
  void write(const nlohmann::ordered_json& record);
  // Throws Error where a line so far was not written.
  void check_written() const;

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace forge::app
