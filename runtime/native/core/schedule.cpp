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

double Schedule::level(const std::vector<double>& levels, int t) const {
    if (t >= 0) return levels[static_cast<std::size_t>(t)];
    return set_alpha_to_one ? 1.0 : levels.front();
}

std::vector<Step> Schedule::sampling(int steps, int count) const {
    const auto times = timesteps(steps);
    const auto levels = alphas_cumprod();
    const int stride = train_steps / steps;
    std::vector<Step> out;
    if (count == steps) {
        for (auto t = times.rbegin(); t != times.rend(); ++t)
            out.push_back(step_between(*t, level(levels, *t), level(levels, *t - stride)));
        return out;
    }
    const std::int64_t top = times.back(), length = top - (times.front() - stride);
    // Where the last timesteps are one and the same, fewer levels lie between.
    if (const auto most = std::min<std::int64_t>(steps, length); count < 1 || count > most)
        throw Error(Kind::request, "sampling-steps-range",
                    text("sampling_steps is ", count, "; it must be between 1 and ", most, ", the inverse steps"));
    const auto knot = [&](std::int64_t i) { return static_cast<int>(top - (i * length + count / 2) / count); };
    // DDIM takes eps for constant over rho; a line through this eps and the last one's, integrated over rho, adds c.
    double before = 0;
    for (int i = 0; i < count; ++i) {
        const double from = level(levels, knot(i)), to = level(levels, knot(i + 1));
        const double change = std::sqrt((1.0 - to) / to) - std::sqrt((1.0 - from) / from);
        Step step = step_between(knot(i), from, to);
        if (i > 0) step.c = step.b * change / (2 * before);
        out.push_back(step);
        before = change;
    }
    return out;
}

std::vector<Step> Schedule::inversion(int steps) const {
    const auto times = timesteps(steps);
    const auto levels = alphas_cumprod();
    std::vector<Step> out;
    for (const int t : times) out.push_back(step_between(t, level(levels, t - train_steps / steps), level(levels, t)));
    return out;
}

}  // namespace posecrafter
