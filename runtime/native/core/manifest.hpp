// The bundle's manifest: what a bundle is, what it can do, and the hash of every file in it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "schedule.hpp"

namespace posecrafter {

inline constexpr int largest_side = 16384;                // pixels
inline constexpr std::int64_t largest_count = 1'000'000;  // of anything that a manifest or a pack counts

// Allowed values of one dimension, both ends included, in steps of `multiple`.
struct Range {
    std::int64_t min = 0, max = 0, multiple = 1;
};

struct FileEntry {
    std::string name;
    std::uint64_t bytes = 0;
    std::string sha256;
};

inline constexpr int most_iterations = 16;  // of an inverse step

using InputShapes = std::map<std::string, std::vector<std::int64_t>>;

struct Manifest {
    std::string precision, pose_style, kind = "merged", prompt;
    Range width_range, height_range, frames, prompts;
    int channels = 0, factor = 0;  // of the latents: [channels, H / factor, W / factor]
    int tokens = 0, text_width = 0;
    int width = 0, height = 0, steps = 0;  // a request's defaults; sizes in pixels
    double guidance = 0, control_scale = 0, fps = 0;
    int inversion_iterations = 1;  // older manifests do not tell, nor
    bool keep_mean = false;
    int sampling_steps = 0;  // as many as steps where a manifest says 0 or nothing
    int training_frames = 0, network_width = 0;
    Schedule schedule;
    std::map<std::string, InputShapes> shared;  // graph -> inputs that are a person's; of the kind "shared"
    std::string base_sha256;                    // of the base that the person was tuned on; empty: not told
    std::vector<FileEntry> files;               // in the manifest's order

    bool lists(std::string_view name) const;

    // Parses <folder>/manifest.json. Throws Error "bundle-missing", "bundle-manifest", "bundle-format".
    static Manifest read(const std::filesystem::path& folder);
    // The same from text; `name` stands for the file in errors.
    static Manifest parse(std::string_view content, const std::string& name);
    // Checks that every listed file lies inside `folder`, is there, and has its size and hash, and that no other file
    // lies beside them. Throws Error "bundle-path", "bundle-file-missing", "bundle-hash", "bundle-file-unlisted".
    void verify(const std::filesystem::path& folder) const;
};

}  // namespace posecrafter
