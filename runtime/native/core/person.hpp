// Somebody to render: the bundle as his, and the weights that the graphs take as inputs, in the engine's memory.
#pragma once

#include <filesystem>

#include "bundle.hpp"
#include "engine.hpp"

namespace posecrafter {

// The bundle with a pack's person in place of its own. Throws Error "pack-missing", "pack-format", "pack-hash",
// "pack-base", "bundle-person"; "poses-json" for poses that cannot be read.
Bundle read_person(const Bundle& own, const std::filesystem::path& pack);

// Copies a person's weights into the engine's memory, once. All are checked before the first is copied.
// Throws Error "pack-weights" for a missing, extra or misshapen tensor, another type, or values not finite.
Bound upload_weights(Engine& engine, const std::filesystem::path& path, const Manifest& manifest);

}  // namespace posecrafter
