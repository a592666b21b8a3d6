#include "apps/forge/run_log.h"

#include <nlohmann/json.hpp>

#include "forge/base/error.h"

namespace forge::app {

RunLog::RunLog(const std::filesystem::path& path) : path_(path) {
  if (path.empty()) return;
  file_.open(path);
  check(file_.is_open(), "--log: cannot write ", path, "; name a file in a folder that exists");
}

void RunLog::write(const nlohmann::ordered_json& record) {
  // A sample may end within a character.
  using nlohmann::json;
  if (file_.is_open()) file_ << record.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
}

void RunLog::check_written() const {
  check(file_.good(), "--log: cannot write ", path_, ", of which lines are missing; is the disk full?");
}

}  // namespace forge::app
