// Low-rank packs: what tuning added to the base's matrices, as pairs of thin factors (Hu et al. 2021).
// The graphs take full matrices, W + scale * up @ down, made when a pack is loaded, from W as the shared bundle holds
// it.
#pragma once

#include <deque>
#include <filesystem>
#include <map>
#include <string>

#include "pack.hpp"
#include "tensors.hpp"

namespace posecrafter {

// In a shared bundle: W of every matrix that low-rank tuning changes, "<graph>/<input>", in the bundle's precision.
inline constexpr const char* base_file = "graphs/base.safetensors";

// Puts a full matrix in place of every pair of factors, in W's type. down: [r, in], up: [out, r], W: [out, in];
// multiplied in float64, as in Python. path: the pack's file, for messages. Returns what the made ones lie in.
// Throws Error "pack-weights", "bundle-person".
std::deque<std::string> multiply_out(std::map<std::string, Stored>& tensors, const LowRank& low_rank,
                                     const std::filesystem::path& base, const std::string& path);

}  // namespace posecrafter
