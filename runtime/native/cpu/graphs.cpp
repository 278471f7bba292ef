#include "graphs.hpp"

#include <algorithm>
#include <climits>

namespace posecrafter::cpu {

namespace {

struct Kind {
    std::string name;
    std::vector<std::string> inputs;
    std::unique_ptr<Graph> (*make)(Machine& machine, const Layers& layers);
};

const Kind& kind_of(const Layers& layers) {
    static const Kind kinds[] = {
        {"denoiser", {"x", "timestep", "a", "b", "text", "weight", "pose_features", "control_scale"}, make_denoiser},
        {"vae_decoder", {"latents"}, make_decoder},
        {"pose_encoder", {"control_images"}, make_pose_encoder},
        {"text_encoder", {"input_ids"}, make_text_encoder}};
    for (const Kind& kind : kinds)
        if (kind.name == layers.graph()) return kind;
    throw LayersError("'" + layers.graph() + "' is no graph that this engine knows");
}

}  // namespace

std::unique_ptr<Graph> make_graph(Machine& machine, const Layers& layers) {
    return kind_of(layers).make(machine, layers);
}

const std::vector<std::string>& inputs_of(const Layers& layers) {
    return kind_of(layers).inputs;
}

void check_sizes(const std::string& name, const Given& given, const std::vector<int>& sizes, bool whole) {
    bool same = given.sizes.size() == sizes.size() && given.whole == whole;
    for (std::size_t i = 0; same && i < sizes.size(); ++i)
        same = sizes[i] == 0 ? given.sizes[i] > 0 : given.sizes[i] == sizes[i];
    if (same) return;
    const auto words = [](const std::vector<int>& all, bool integers) {
        std::string text;
        for (int size : all) text += (text.empty() ? "" : ", ") + (size ? std::to_string(size) : std::string("any"));
        return std::string(integers ? "int64" : "float32") + " [" + text + "]";
    };
    throw LayersError(name + " is " + words(given.sizes, given.whole) + ", not " + words(sizes, whole));
}

void check_cells(std::initializer_list<int> sizes) {
    double cells = 1;
    for (int size : sizes) cells *= size;
    if (cells > INT_MAX)
        throw LayersError("a pass is too large for the engine 'native'; render fewer frames at a time");
}

int together(const Machine& machine, int pixels) {
    constexpr int kPixels = 1 << 16;  // measured: four frames of 128x128 take less time a frame than eight, or one
    return std::max(machine.threads, kPixels / pixels);
}

Given part(const Machine& machine, const Given& planar, int first, int count) {
    Given some = planar;
    some.sizes[0] = count;
    std::size_t image = 1;
    for (std::size_t i = 1; i < some.sizes.size(); ++i) image *= static_cast<std::size_t>(some.sizes[i]);
    if (!machine.counting) some.data = planar.floats() + static_cast<std::size_t>(first) * image;
    return some;
}

Images from_planar(Machine& machine, const Given& planar) {
    Images made = machine.images(planar.sizes[0], planar.sizes[2], planar.sizes[3], planar.sizes[1]);
    const int cells = made.cells(), channels = made.channels;
    machine.share(made.count, [&](int image) {
        const float* from = planar.floats() + static_cast<std::size_t>(image) * cells * channels;
        float* to = made.image(image);
        for (int cell = 0; cell < cells; ++cell)
            for (int channel = 0; channel < channels; ++channel)
                *to++ = from[static_cast<std::size_t>(channel) * cells + cell];
    });
    return made;
}

void to_planar(const float* images, int count, int cells, int channels, float* planar) {
    for (int image = 0; image < count; ++image, images += static_cast<std::size_t>(cells) * channels)
        for (int channel = 0; channel < channels; ++channel)
            for (int cell = 0; cell < cells; ++cell)
                *planar++ = images[static_cast<std::size_t>(cell) * channels + channel];
}

std::size_t Made::count() const {
    std::size_t count = 1;
    for (int size : sizes) count *= static_cast<std::size_t>(size);
    return count;
}

Made made(const Machine& machine, std::string name, std::vector<int> sizes) {
    Made made{std::move(name), std::move(sizes), nullptr};
    if (!machine.counting) made.data.reset(new float[made.count()]);
    return made;
}

}  // namespace posecrafter::cpu
