#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace posecrafter {

// A whole file as bytes; nothing where it cannot be read.
std::optional<std::string> read_file(const std::filesystem::path& path);

}  // namespace posecrafter
