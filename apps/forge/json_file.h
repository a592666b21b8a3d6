#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>

namespace forge::app {

// What --json asks for; nothing where the path is empty. Throws Error where the file cannot be written.
void write_json(const std::filesystem::path& path, const nlohmann::ordered_json& rows);

}  // namespace forge::app
