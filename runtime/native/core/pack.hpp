// A person's pack: a folder with what a shared bundle needs to render somebody else, in the bundle or anywhere.
//     person.json  weights.safetensors  poses.json  latents.safetensors  text.safetensors
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "manifest.hpp"

namespace posecrafter {

inline constexpr const char* weights_file = "weights.safetensors";

// Of every update in a pack. rank: columns of `up`, rows of `down`. scale: alpha / rank.
struct LowRank {
    int rank = 0;
    double scale = 0;
};

// person.json: whose base the pack belongs to, what a manifest says of one person, every other file's size and hash.
struct Pack {
    std::string base_sha256, prompt;
    int training_frames = 0, width = 0, height = 0;
    double fps = 0;
    std::vector<FileEntry> files;
    std::optional<LowRank> low_rank;  // of the updates among the weights; none where all are full matrices

    // Parses <folder>/person.json and checks the four files. Throws Error "pack-missing", "pack-format", "pack-hash".
    static Pack read(const std::filesystem::path& folder);
    // Parses the record alone; `name` stands for the file in errors.
    static Pack parse(std::string_view content, const std::string& name);
};

// The folder of a person: a name in the bundle's persons/, or a path. Throws Error "pack-missing" naming who is there.
std::filesystem::path find_pack(const std::filesystem::path& bundle, const std::string& person);

}  // namespace posecrafter
