// What a caller asks for: checked at the border, complete.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "track.hpp"

namespace posecrafter {

enum class Inversion { none, reference, target };
enum class Warp { nearest, bilinear };
enum class Region { face, left_hand, right_hand };

inline constexpr std::array<Region, 3> regions{Region::face, Region::left_hand, Region::right_hand};

inline const char* name_of(Region region) {
    constexpr const char* names[] = {"face", "left_hand", "right_hand"};
    return names[static_cast<int>(region)];
}
inline Part points_of(Region region) {
    constexpr Part parts[] = {face, left_hand, right_hand};
    return parts[static_cast<int>(region)];
}

// One video to render. What is not given comes from the bundle.
struct Request {
    std::optional<Track> poses;            // the M target frames on any canvas
    const std::uint8_t* images = nullptr;  // ready control images [M, H, W, 3], drawn by the caller; borrowed
    int frames = 0;                        // M
    std::optional<int> reference;          // the training frame; not given: chosen by the poses
    const float* prompt = nullptr;         // [T, D] in place of the trained prompt's embedding; borrowed
    const float* negative = nullptr;       // [T, D] in place of the empty prompt's; borrowed
    std::optional<int> steps;
    std::optional<int> sampling_steps;  // not given: as many as steps, where those are
    std::optional<double> guidance, control_scale;
    Inversion inversion = Inversion::reference;
    std::optional<int> inversion_iterations;  // of an inverse step
    std::uint64_t seed = 0;
    std::vector<Region> edit{regions.begin(), regions.end()};
    Warp warp = Warp::nearest;
    std::optional<bool> keep_mean;  // whether a frame's latents keep their mean where regions are moved
    std::optional<int> window;      // target frames a pass
    int decode_chunk = 8;
    std::optional<std::uint64_t> memory;  // bytes that a pass may use by the plan's estimate

    // Throws Error naming the field, its value and what it may be.
    void check() const;
};

}  // namespace posecrafter
