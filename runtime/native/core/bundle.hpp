// A bundle in memory: manifest, the person's poses and latents, stored text. Verified before anything is parsed.
#pragma once

#include <filesystem>

#include "manifest.hpp"
#include "tensors.hpp"
#include "track.hpp"

namespace posecrafter {

// What a session needs besides the graphs. latents: float32 [N, L, h, w], scaled; prompt, empty: [T, D].
struct Bundle {
    std::filesystem::path folder;
    Manifest manifest;
    Track poses;
    Floats latents, prompt, empty;

    // Throws Error "bundle-missing", "bundle-manifest", "bundle-format", "bundle-path", "bundle-file-missing",
    // "bundle-file-unlisted", "bundle-hash", "bundle-person"; "poses-json" for a person's poses that cannot be read.
    static Bundle open(const std::filesystem::path& folder);
    // The bundle in `folder` with poses, latents and text from the folder `person`, which have been verified.
    // Throws Error "bundle-person" where they do not have the manifest's shapes, "poses-json".
    static Bundle with_person(const std::filesystem::path& folder, const Manifest& manifest,
                              const std::filesystem::path& person);

    int cells_wide() const { return manifest.width / manifest.factor; }
    int cells_high() const { return manifest.height / manifest.factor; }
    // Numbers in one frame's latents, L * h * w.
    std::size_t latent_size() const;
};

// "[2, 3]"
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace posecrafter
