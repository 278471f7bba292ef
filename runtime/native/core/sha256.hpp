#pragma once

#include <filesystem>
#include <string>

namespace posecrafter {

// Hexadecimal SHA-256 of a file's bytes. Throws Error "bundle-file-missing" when it cannot be read.
std::string sha256_of(const std::filesystem::path& path);

}  // namespace posecrafter
