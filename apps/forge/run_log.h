#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace forge::app {

// One JSON object a line, each flushed, so that a run that was stopped has its log.
class RunLog {
 public:
  // An empty path logs nothing. Throws Error where the file cannot be written.
  explicit RunLog(const std::filesystem::path& path);
  void write(const nlohmann::ordered_json& record);

 private:
  std::ofstream file_;
};

}  // namespace forge::app
