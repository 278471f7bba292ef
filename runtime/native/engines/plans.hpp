// What `posecrafter compile` left in a bundle's engines/: which plan is for this machine, and which of its profiles
// takes a pass. The checks and codes are those of Python's runtime/engines/built.py and tensorrt.py.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace posecrafter {

// Sizes of the dimensions of a pass by name: "frames", "h", ...
using Sizes = std::map<std::string, std::int64_t>;

// Both ends of each dimension that a plan takes.
struct Profile {
    Sizes low, high;
    bool takes(const Sizes& sizes) const;
};

// One built file, and what it takes.
struct PlanFile {
    std::string file, sha256;
    std::uint64_t bytes = 0;
    std::vector<Profile> profiles;
};

// One folder of engines/, as its engine.json tells.
struct Built {
    std::filesystem::path folder;
    std::string engine, version, target;
    std::map<std::string, std::string> sources;  // graph -> hash of the bundle's files that it was built from
    std::map<std::string, PlanFile> graphs;
    std::string cure;  // the command that mends it
};

// The folder built for the device `here` ("sm90"), before one built for any, by this version of the library.
// Throws Error "plan-missing", "plan-record", "plan-version", "plan-stale", "plan-target".
Built find_built(const std::filesystem::path& bundle, const std::string& engine, const std::string& version,
                 const std::string& here);

// The bytes of a graph's plan, which have the recorded size and hash. Throws Error "plan-missing", "plan-altered".
std::string read_plan(const Built& built, const std::string& graph);

// The index of the tightest profile that takes `sizes`. Throws Error "plan-size" naming those that exist.
int choose_profile(const Built& built, const std::string& graph, const Sizes& sizes);

}  // namespace posecrafter
