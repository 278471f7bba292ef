#include <cmath>
#include <nlohmann/json.hpp>

#include "plan.hpp"

namespace posecrafter {
namespace {

using Json = nlohmann::ordered_json;

Json steps_of(const std::vector<Step>& steps) {
    Json out = Json::array();
    for (const Step& step : steps) out.push_back({step.timestep, step.a, step.b, step.c});
    return out;
}

Json motion_of(const Motion& motion) {
    return {{"matrix", motion.matrix},
            {"box", {motion.left, motion.top, motion.right, motion.bottom}},
            {"fit", motion.similarity ? "similarity" : "affine"}};
}

Json motions_of(const std::vector<Motions>& frames) {
    Json out = Json::array();
    for (const Motions& motions : frames) {
        Json regions = Json::object();
        for (const auto& [region, motion] : motions) regions[name_of(region)] = motion_of(motion);
        out.push_back(std::move(regions));
    }
    return out;
}

Json edited_of(const std::vector<Motions>& frames) {
    Json out;
    for (const Region region : regions) {
        int count = 0;
        for (const Motions& motions : frames)
            for (const auto& entry : motions) count += entry.first == region;
        out[name_of(region)] = count;
    }
    return out;
}

}  // namespace

std::string Plan::json() const {
    constexpr const char* inversions[] = {"noise", "reference", "target"};
    Json out;
    out["size"] = std::to_string(width) + "x" + std::to_string(height);
    out["frames"] = frames;
    out["reference_frame"] = reference;
    out["reference_distance"] = std::isnan(distance) ? Json() : Json(std::round(distance * 1e5) / 1e5);
    for (const Window& window : windows) out["windows"].push_back({window.start, window.stop});
    out["inversion"] = inversions[static_cast<int>(inversion)];
    out["inversion_steps"] = inversion_steps.size();
    out["inversion_iterations"] = inversion_iterations;
    out["sampling_steps"] = sampling_steps.size();
    out["prompts"] = weights.size();
    out["weights"] = weights;
    out["control_scale"] = control_scale;
    out["keep_mean"] = keep_mean;
    out["edited"] = edited_of(motions);
    out["skipped"] = skips.size();
    out["frame_evaluations"] = evaluations;
    out["memory_bytes"] = memory;
    out["warnings"] = warnings;
    out["steps"] = {{"inversion", steps_of(inversion_steps)}, {"sampling", steps_of(sampling_steps)}};
    out["motions"] = motions_of(motions);
    out["skips"] = Json::array();
    for (const Skip& skip : skips) out["skips"].push_back({skip.frame, name_of(skip.region), skip.reason});
    return out.dump();
}

}  // namespace posecrafter
