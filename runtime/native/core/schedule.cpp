#include "schedule.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "error.hpp"

namespace posecrafter {
namespace {

Step step_between(int timestep, double from, double to) {
    const double a = std::sqrt(to / from);
    return {timestep, a, std::sqrt(1.0 - to) - a * std::sqrt(1.0 - from)};
}

}  // namespace

// abar_t for t = 0 .. train_steps - 1.
std::vector<double> Schedule::alphas_cumprod() const {
    const bool scaled = beta_schedule == "scaled_linear";
    const double first = scaled ? std::sqrt(beta_start) : beta_start, last = scaled ? std::sqrt(beta_end) : beta_end;
    const double pace = train_steps > 1 ? (last - first) / (train_steps - 1) : 0.0;
    std::vector<double> levels(static_cast<std::size_t>(train_steps));
    double product = 1;
    for (int t = 0; t < train_steps; ++t) {
        const double root = t == train_steps - 1 && t > 0 ? last : t * pace + first;
        product *= 1.0 - (scaled ? root * root : root);
        levels[static_cast<std::size_t>(t)] = product;
    }
    return levels;
}

std::vector<int> Schedule::timesteps(int steps) const {
    if (steps < 1 || steps > train_steps)
        throw Error(Kind::request, "steps-range", text("steps is ", steps, "; it must be between 1 and ", train_steps));
    const std::int64_t stride = train_steps / steps;
    std::vector<int> out;
    for (std::int64_t i = 0; i < steps; ++i)
        out.push_back(static_cast<int>(std::min<std::int64_t>(i * stride + steps_offset, train_steps - 1)));
    return out;
}

std::vector<Step> Schedule::sampling(int steps) const {
    std::vector<Step> out = inversion(steps);
    std::reverse(out.begin(), out.end());
    const auto levels = alphas_cumprod();
    const double clean = set_alpha_to_one ? 1.0 : levels.front();
    for (Step& step : out) {
        const int end = step.timestep - train_steps / steps;
        step = step_between(step.timestep, levels[static_cast<std::size_t>(step.timestep)],
                            end >= 0 ? levels[static_cast<std::size_t>(end)] : clean);
    }
    return out;
}

std::vector<Step> Schedule::inversion(int steps) const {
    const auto times = timesteps(steps);
    const auto levels = alphas_cumprod();
    const double clean = set_alpha_to_one ? 1.0 : levels.front();
    std::vector<Step> out;
    for (const int t : times) {
        const int start = t - train_steps / steps;
        out.push_back(step_between(t, start >= 0 ? levels[static_cast<std::size_t>(start)] : clean,
                                   levels[static_cast<std::size_t>(t)]));
    }
    return out;
}

}  // namespace posecrafter
