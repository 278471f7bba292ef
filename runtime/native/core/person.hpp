// Somebody to render: the bundle as his, and the weights that the graphs take as inputs, in the engine's memory.
#pragma once

#include <filesystem>
#include <optional>

#include "bundle.hpp"
#include "engine.hpp"
#include "pack.hpp"

namespace posecrafter {

// The bundle with the person of a pack, which was read from `folder`, in place of its own. Throws Error "pack-base",
// "bundle-person"; "poses-json" for poses that cannot be read.
Bundle read_person(const Bundle& own, const Pack& pack, const std::filesystem::path& folder);

// Copies a person's weights into the engine's memory, once. All are checked before the first is copied.
// low_rank: of the updates in the file `path`, which are added to the matrices of the bundle's base.
// Throws Error "pack-weights" for a missing, extra or misshapen tensor, another type, or values not finite;
// "bundle-file-missing" where the bundle holds no base's matrices, "bundle-person" where these cannot be read.
Bound upload_weights(Engine& engine, const std::filesystem::path& path, const Bundle& bundle,
                     const std::optional<LowRank>& low_rank = std::nullopt);

}  // namespace posecrafter
