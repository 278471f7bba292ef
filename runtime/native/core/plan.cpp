#include "plan.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "select.hpp"

namespace posecrafter {
namespace {

// Python's estimate for engines that have none of their own (runtime/plan.py says where it comes from): beside the
// weights so many fp32 tensors of the first level's size for every frame, so many for every frame and prompt, and some
// bytes of the engine's own.
constexpr std::uint64_t live_frame = 39, live_prompt = 14, engine_bytes = 72U << 20;
constexpr double far = 0.08;

std::uint64_t memory_of_pass(const Request& request, const Bundle& bundle, const Engine& engine, int frames,
                             std::size_t prompts) {
    const Manifest& m = bundle.manifest;
    const auto known =
        engine.memory({frames, int(prompts), request.decode_chunk, m.height, m.width, m.factor, m.tokens});
    if (known) return *known;
    std::uint64_t weights = 0;
    for (const FileEntry& entry : m.files)
        if (entry.name.starts_with("graphs/") && !entry.name.ends_with(".layers")) weights += entry.bytes;
    const auto cells = std::uint64_t(bundle.cells_wide()) * std::uint64_t(bundle.cells_high());
    const std::uint64_t tensor = 4 * std::uint64_t(m.network_width) * cells;
    return engine_bytes + weights + tensor * std::uint64_t(frames) * (live_frame + live_prompt * prompts);
}

// M frames in the fewest windows of nearly equal length.
std::vector<Window> split(const Request& request, const Bundle& bundle, const Engine& engine, std::size_t prompts) {
    const int limit = static_cast<int>(bundle.manifest.frames.max) - 1;
    if (request.window && *request.window > limit)
        throw Error(Kind::request, "window-range",
                    text("window is ", *request.window, " frames; this bundle takes ", limit,
                         " beside the reference. Shorten it, or export with a larger --max-frames"));
    int longest = std::min(request.window.value_or(limit), limit);
    if (request.memory) {
        const auto memory = [&] { return memory_of_pass(request, bundle, engine, longest + 1, prompts); };
        while (longest > 1 && memory() > *request.memory) --longest;
        const std::uint64_t needed = memory();
        if (needed > *request.memory)
            throw Error(
                Kind::request, "memory-budget",
                text("one frame needs about ", needed, " bytes, the budget is ", *request.memory, "; raise it"));
    }
    const int count = (request.frames + longest - 1) / longest;
    const double length = double(request.frames) / count;
    std::vector<Window> windows;
    int start = 0;
    for (int i = 1; i <= count; ++i) {
        const int stop = i == count ? request.frames : static_cast<int>(std::nearbyint(i * length));
        windows.push_back({start, stop});
        start = stop;
    }
    return windows;
}

void find_motions(const Request& request, const Bundle& bundle, Plan& plan) {
    const Cells cells{bundle.manifest.channels, bundle.cells_high(), bundle.cells_wide()};
    plan.motions.resize(std::size_t(plan.frames));
    if (!plan.poses) return;
    for (int frame = 0; frame < plan.frames; ++frame)
        for (const Region region : request.edit) {
            auto found = fit_motion(plan.reference_pose.frame(0), plan.poses->frame(frame), points_of(region), cells,
                                    bundle.manifest.factor);
            if (const auto* motion = std::get_if<Motion>(&found))
                plan.motions[std::size_t(frame)].emplace_back(region, *motion);
            else
                plan.skips.push_back({frame, region, std::get<std::string>(found)});
        }
}

// "3-5, 9" for 3, 4, 5, 9; at most six runs.
std::string ranges(const std::vector<int>& indices) {
    std::string out;
    int runs = 0;
    for (std::size_t i = 0; i < indices.size(); ++i) {
        const std::size_t first = i;
        while (i + 1 < indices.size() && indices[i + 1] == indices[i] + 1) ++i;
        if (++runs > 6) return out + ", ...";
        out += text(runs > 1 ? ", " : "", indices[first]);
        if (i > first) out += text("-", indices[i]);
    }
    return out;
}

void warn_of_poses(const Table& table, Plan& plan) {
    std::vector<int> absent, distant;
    for (int j = 0; j < plan.frames; ++j) {
        if (!plan.poses->shows_somebody(j)) absent.push_back(j);
        double nearest = INFINITY;
        for (int i = 0; i < table.rows; ++i) nearest = std::fmin(nearest, table.row(i)[j]);
        if (std::isfinite(nearest) && nearest > far) distant.push_back(j);
    }
    if (!absent.empty())
        plan.warnings.push_back(
            text(absent.size(), " target frames show nobody (", ranges(absent), "); fill or cut them"));
    if (!distant.empty())
        plan.warnings.push_back(
            text(distant.size(), " target frames are further than 8% of the image from every training pose (",
                 ranges(distant), "); expect artefacts there, or train on a clip that shows such poses"));
}

// A region that the target never shows is no loss.
void warn_of_skips(Plan& plan) {
    std::vector<std::pair<const Skip*, int>> counted;  // by region and reason, in order of appearance
    for (const Skip& skip : plan.skips) {
        if (!plan.poses->shows(points_of(skip.region))) continue;
        const auto same = [&](const auto& entry) {
            return entry.first->region == skip.region && entry.first->reason == skip.reason;
        };
        const auto found = std::find_if(counted.begin(), counted.end(), same);
        found == counted.end() ? counted.emplace_back(&skip, 1) : (++found->second, *found);
    }
    std::stable_sort(counted.begin(), counted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    counted.resize(std::min<std::size_t>(counted.size(), 3));
    for (const auto& [skip, count] : counted)
        plan.warnings.push_back(text(name_of(skip->region), " is not edited in ", count, " frames: ", skip->reason));
}

int longest(const std::vector<Window>& windows) {
    int frames = 0;
    for (const Window& window : windows) frames = std::max(frames, window.frames());
    return frames;
}

std::uint64_t count_evaluations(const Plan& plan, int steps) {
    std::uint64_t passes = 0;
    for (const Window& window : plan.windows) passes += std::uint64_t(window.frames()) + 1;
    const std::uint64_t inverted = plan.inversion == Inversion::none     ? 0
                                   : plan.inversion == Inversion::target ? passes
                                                                         : 1;
    const auto more = static_cast<std::uint64_t>(plan.inversion_iterations - 1);
    const std::uint64_t inverse = more ? std::uint64_t(steps) * more + 1 : std::uint64_t(steps);
    return inverse * inverted + plan.sampling_steps.size() * plan.weights.size() * passes;
}

// The chosen training frame, or the nearest. A chosen one that shares no key point has no distance: refused too.
int choose_reference(const Request& request, const Bundle& bundle, const Table& table) {
    const int nearest = request.poses ? select_reference(table) : -1;
    if (!request.reference) return nearest;
    const int chosen = *request.reference;
    if (chosen < 0 || chosen >= bundle.manifest.training_frames)
        throw Error(
            Kind::request, "reference-range",
            text("reference is ", chosen, "; the training frames are 0 to ", bundle.manifest.training_frames - 1));
    if (request.poses && std::isnan(table.mean(chosen)))
        throw Error(Kind::request, "reference-range",
                    text("training frame ", chosen, " shares no key point with the target; frame ", nearest,
                         " is the nearest"));
    return chosen;
}

}  // namespace

Plan make_plan(const Request& request, const Bundle& bundle, const Engine& engine) {
    request.check();
    const Manifest& m = bundle.manifest;
    std::optional<Track> poses;
    if (request.poses) poses = request.poses->framed(m.width, m.height);
    const Table table = poses ? distances(bundle.poses, *poses) : Table{};
    const int reference = choose_reference(request, bundle, table);
    const int steps = request.steps.value_or(m.steps);
    const double guidance = request.guidance.value_or(m.guidance);
    Plan plan{.width = m.width,
              .height = m.height,
              .frames = request.frames,
              .reference = reference,
              .distance = table.columns ? table.mean(reference) : NAN,
              .poses = std::move(poses),
              .reference_pose = bundle.poses.slice(reference, reference + 1)};
    if (guidance == 1.0)
        plan.weights = {1.0F};
    else
        plan.weights = {static_cast<float>(1.0 - guidance), static_cast<float>(guidance)};
    plan.windows = split(request, bundle, engine, plan.weights.size());
    plan.inversion = request.inversion;
    plan.inversion_iterations = request.inversion_iterations.value_or(m.inversion_iterations);
    if (request.inversion != Inversion::none) plan.inversion_steps = m.schedule.inversion(steps);
    plan.sampling_steps =
        m.schedule.sampling(steps, request.sampling_steps.value_or(request.steps.value_or(m.sampling_steps)));
    plan.control_scale = request.control_scale.value_or(m.control_scale);
    plan.warp = request.warp;
    plan.keep_mean = request.keep_mean.value_or(m.keep_mean);
    find_motions(request, bundle, plan);
    plan.evaluations = count_evaluations(plan, steps);
    plan.memory = memory_of_pass(request, bundle, engine, longest(plan.windows) + 1, plan.weights.size());
    if (plan.poses) warn_of_poses(table, plan);
    if (plan.windows.size() > 1)
        plan.warnings.push_back(
            text(plan.windows.size(), " windows of up to ", longest(plan.windows),
                 " frames: the picture may change slightly where they meet; allow more frames a pass "
                 "with --window or --memory"));
    warn_of_skips(plan);
    return plan;
}

}  // namespace posecrafter
