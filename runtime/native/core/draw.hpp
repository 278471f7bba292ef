// Key points to control images: the drawing that ControlNet-openpose was trained on, pixel for pixel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "raster.hpp"
#include "track.hpp"

namespace posecrafter {

// The control images of a track on its own canvas: uint8 RGB [F, H, W, 3].
// Throws Error "pose-style" for a style other than "v1.1", "v1.0" and "v1.1-small".
std::vector<std::uint8_t> draw_poses(const Track& track, const std::string& style);

}  // namespace posecrafter
