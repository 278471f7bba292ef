// Latent editing: face and hands of the inverted reference, moved to where the target's are.
//
// Key points live in pixels, latents in cells of `factor` pixels whose centres are at (u + 0.5) * factor.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "request.hpp"
#include "track.hpp"

namespace posecrafter {

// A map of the plane: row-major [2, 3].
using Affine = std::array<double, 6>;

// Where one region of one target frame takes its latents from. matrix: pixels of the reference -> pixels of the target.
struct Motion {
    Affine matrix{};
    int left = 0, top = 0, right = 0, bottom = 0;  // in latent cells, right and bottom exclusive
    bool similarity = false;                       // fitted with four parameters, not six
};

using Motions = std::vector<std::pair<Region, Motion>>;

// One frame's latents [channels, high, wide].
struct Cells {
    int channels, high, wide;
    std::size_t size() const { return std::size_t(channels) * std::size_t(high) * std::size_t(wide); }
};

// The motion of one region, or the reason why there is none. reference, target: all key points of a frame.
std::variant<Motion, std::string> fit_motion(const KeyPoint* reference, const KeyPoint* target, Part part,
                                             const Cells& cells, int factor);
// Overwrite the motion's box of `out` with `source` moved, in place. Cells from outside of `source` keep their value.
// bilinear divides by the norm of its four weights, so that independent noise keeps its variance.
void warp_region(float* out, const float* source, const Cells& cells, const Motion& motion, int factor, Warp warp);
// Shift each channel of `out` to the mean that it has in `before`: what is pasted is there twice, and would tint the
// whole frame.
void keep_mean(float* out, const float* before, const Cells& cells);

}  // namespace posecrafter
