// From a request to everything that will happen: a pure function, no network, no randomness, no file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "edit.hpp"
#include "engine.hpp"
#include "request.hpp"

namespace posecrafter {

// Target frames start .. stop-1, sampled in one pass behind the reference frame.
struct Window {
    int start, stop;
    int frames() const { return stop - start; }
};

// A region of a target frame that is not edited, and why.
struct Skip {
    int frame;
    Region region;
    std::string reason;
};

// What a session does for a request; the fields are those of Python's Plan.
struct Plan {
    int width = 0, height = 0, frames = 0, reference = 0;
    double distance = 0;  // NaN where the caller chose the reference
    std::optional<Track> poses;
    Track reference_pose;
    std::vector<Window> windows;
    Inversion inversion = Inversion::reference;
    std::vector<Step> inversion_steps, sampling_steps;
    int inversion_iterations = 1;  // of each inverse step
    std::vector<float> weights;
    double control_scale = 1;
    std::vector<Motions> motions;  // of each target frame
    std::vector<Skip> skips;
    Warp warp = Warp::nearest;
    bool keep_mean = false;
    std::uint64_t evaluations = 0, memory = 0;
    std::vector<std::string> warnings;

    // Everything in one JSON object: the keys of Python's summary, then steps, motions and skips.
    std::string json() const;
};

// Decide everything. engine: what the memory is estimated for. Throws Error of a request's ranges,
// "no-common-key-points".
Plan make_plan(const Request& request, const Bundle& bundle, const Engine& engine);

}  // namespace posecrafter
