#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace posecrafter {

// `count` draws of N(0, 1): what numpy's default_rng(seed).standard_normal gives, so that a seed means one picture.
std::vector<float> gaussian_noise(std::uint64_t seed, std::size_t count);

}  // namespace posecrafter
