#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace posecrafter {

// Hexadecimal SHA-256 of a file's bytes. Throws Error "bundle-file-missing" when it cannot be read.
std::string sha256_of(const std::filesystem::path& path);
// The same of bytes in memory.
std::string sha256_of_text(std::string_view bytes);

}  // namespace posecrafter
