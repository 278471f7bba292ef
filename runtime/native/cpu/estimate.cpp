#include "estimate.hpp"

#include <algorithm>
#include <cstdint>

namespace posecrafter::cpu {

namespace {

// The library's code, its threads and the heap's small pieces, the bundle's person: measured.
constexpr std::size_t kBeside = 8 << 20;
/* Copies of the latents that there are during a step: where sampling started, the caller's, what was made last and is
 * being made. */
constexpr std::size_t kLatents = 10;

/* Layers whose person is one of zeros, held by `zeros`. */
Layers somebodys(const Layers& layers, std::vector<char>& zeros) {
    std::vector<Weight> given = layers.persons();
    for (const Weight& weight : given) {
        std::size_t bytes = sizeof(float);
        for (int size : weight.sizes) bytes *= static_cast<std::size_t>(size);
        zeros.resize(std::max(zeros.size(), bytes));
    }
    for (Weight& weight : given) weight.data = zeros.data();
    return layers.with(given);
}

}  // namespace

Estimate::Estimate(const std::string& folder, int threads, bool bf16) : threads_(threads), bf16_(bf16) {
    const Layers layers(folder + "/denoiser");
    channels_ = layers.whole("in_channels"), text_width_ = layers.whole("text_width");
    denoiser_ = count(layers);
    pose_encoder_ = count(Layers(folder + "/pose_encoder"));
    decoder_ = count(Layers(folder + "/vae_decoder"));
}

std::unique_ptr<Graph> Estimate::count(const Layers& layers) {
    Machine machine(threads_, bf16_, true);
    std::vector<char> zeros;
    std::unique_ptr<Graph> graph = make_graph(machine, somebodys(layers, zeros));
    weights_ += machine.kept();
    scratch_ = std::max(scratch_, machine.scratches());
    return graph;
}

Estimate::Run Estimate::run(Graph& graph, const std::vector<Given>& given) const {
    Machine machine(threads_, bf16_, true);
    std::vector<Made> made = graph.run(machine, given);
    return {std::move(made), machine.arena.most(), machine.scratches()};
}

std::size_t Estimate::bytes(const Pass& pass) const {
    static constexpr std::int64_t timestep = 0;
    static constexpr float number = 0;
    const int high = pass.height / pass.factor, wide = pass.width / pass.factor;
    const std::vector<int> latents{pass.frames, channels_, high, wide};
    const auto given = [](std::vector<int> sizes) { return Given{std::move(sizes), nullptr, false}; };

    const Run posed = run(*pose_encoder_, {given({pass.frames, 3, pass.height, pass.width})});
    const Given scalar{{}, &number, false};
    const Run step = run(*denoiser_, {given(latents),
                                      {{1}, &timestep, true},
                                      scalar,
                                      scalar,
                                      given({pass.prompts, pass.tokens, text_width_}),
                                      given({pass.prompts}),
                                      given(posed.made[0].sizes),
                                      scalar});
    const int chunk = std::min(pass.chunk, pass.frames);
    const Run decoded = run(*decoder_, {given({chunk, channels_, high, wide})});

    // Pose maps are bytes, floats, and given; pictures are made twice before the first are let go, and taken to bytes.
    const std::size_t image = 3 * static_cast<std::size_t>(pass.height) * static_cast<std::size_t>(pass.width);
    const std::size_t maps = image * static_cast<std::size_t>(pass.frames), x = step.made[0].count();
    const std::size_t pictures = decoded.made[0].count(), features = posed.made[0].count();
    const std::size_t most =
        std::max({maps / 4 + 2 * maps + posed.blocks + features, features + kLatents * x + step.blocks,
                  2 * x + decoded.blocks + 3 * pictures + pictures / 4});
    const std::size_t scratch = std::max({scratch_, posed.scratch, step.scratch, decoded.scratch});
    return kBeside + sizeof(float) * (weights_ + scratch + most);
}

}  // namespace posecrafter::cpu
