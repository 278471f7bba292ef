#include "files.hpp"

#include <fstream>

namespace posecrafter {

std::optional<std::string> read_file(const std::filesystem::path& path) {
    std::error_code ignored;
    const auto size = std::filesystem::file_size(path, ignored);
    std::ifstream in(path, std::ios::binary);
    if (ignored || !in) return std::nullopt;
    std::string content(size, '\0');
    in.read(content.data(), static_cast<std::streamsize>(size));
    if (static_cast<std::uintmax_t>(in.gcount()) != size) return std::nullopt;
    return content;
}

}  // namespace posecrafter
