// The noise schedule, and every linear solver step as two numbers: x' = a x + b eps (DDIM, Song et al. 2021, eq. 12
// with sigma = 0), or three: c (eps - eps of the step before) is added (rho-AB-DEIS of order 2, Zhang and Chen 2023).
// Inversion is DDIM's formula with the noise levels exchanged.
#pragma once

#include <string>
#include <vector>

namespace posecrafter {

// One solver step: the network sees `timestep`; then x <- a x + b eps + c (eps - eps of the step before).
struct Step {
    int timestep = 0;
    double a = 1, b = 0, c = 0;
};

class Schedule {
  public:
    int train_steps = 1000;
    double beta_start = 0.00085, beta_end = 0.012;
    std::string beta_schedule = "scaled_linear";
    int steps_offset = 1;
    bool set_alpha_to_one = false;

    // From noise to clean latents, largest timestep first: the DDIM steps, or `count` < `steps` of second order between
    // the same two levels, at equal distances. Throws Error "steps-range", "sampling-steps-range".
    std::vector<Step> sampling(int steps, int count) const;
    // The inverse steps from clean latents to noise: eps(x, t) carries x from t - T/S to t. Throws Error "steps-range".
    std::vector<Step> inversion(int steps) const;

  private:
    std::vector<double> alphas_cumprod() const;
    // Of alphas_cumprod's numbers; those before t = 0 are the clean level.
    double level(const std::vector<double>& levels, int t) const;
    std::vector<int> timesteps(int steps) const;
};

}  // namespace posecrafter
