#include "apps/forge/json_file.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "forge/base/error.h"

namespace forge::app {

void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& rows) {
  if (path.empty()) return;
  std::ofstream file(path);
  file << rows.dump(2) << "\n";
  file.close();
  check(!file.fail(), "--json: cannot write ", path, "; name a file in a folder that exists");
}

}  // namespace forge::app
