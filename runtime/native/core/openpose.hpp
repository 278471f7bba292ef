// OpenPose JSON in: one file with a list of frames, one with a single frame, or a folder with a file for each frame.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "track.hpp"

namespace posecrafter {

struct Canvas {
    int width, height;  // pixels
};

// Of several people in a frame, the one who covers the largest area. canvas: for files that name none.
// Throws Error "poses-missing", "poses-json".
Track read_poses(const std::filesystem::path& path, std::optional<Canvas> canvas = std::nullopt);
// The same from text; `name` stands for the file in errors.
Track parse_poses(std::string_view content, const std::string& name, std::optional<Canvas> canvas = std::nullopt);

}  // namespace posecrafter
