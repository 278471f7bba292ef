// Pose maps to ControlNet's features: convolutions, every second one halving.
#include <algorithm>
#include <utility>

#include "graphs.hpp"

namespace posecrafter::cpu {

namespace {

class PoseEncoder : public Graph {
  public:
    PoseEncoder(Machine& machine, const Layers& layers) {
        convolutions_.emplace_back(machine, layers, "conv_in");
        for (int index = 0; index < layers.whole("blocks"); ++index)
            convolutions_.emplace_back(machine, layers, "blocks." + std::to_string(index), 1 + index % 2);
        convolutions_.emplace_back(machine, layers, "conv_out");
    }

    std::vector<Made> run(Machine& machine, const std::vector<Given>& given) override {
        check_sizes("control_images", given[0], {0, 3, 0, 0});
        check_cells({given[0].sizes[0], given[0].sizes[2], given[0].sizes[3]});
        const std::vector<int>& sizes = given[0].sizes;
        const int count = sizes[0], most = together(machine, sizes[2] * sizes[3]);
        std::vector<Made> outputs;
        for (int first = 0; first < count; first += most) {
            const Images x = encode(machine, part(machine, given[0], first, std::min(most, count - first)));
            if (outputs.empty()) outputs.push_back(made(machine, "pose_features", {count, x.channels, x.high, x.wide}));
            machine.share(x.count, [&](int image) {
                float* features = outputs[0].data.get() + std::size_t(first + image) * x.cells() * x.channels;
                to_planar(x.image(image), 1, x.cells(), x.channels, features);
            });
        }
        return outputs;
    }

  private:
    Images encode(Machine& machine, const Given& maps) const {
        Images x = convolutions_[0].run(machine, from_planar(machine, maps));
        for (std::size_t index = 1; index < convolutions_.size(); ++index)
            x = convolutions_[index].run(machine, x, {nullptr, true});
        return x;
    }

    std::vector<Convolution3x3> convolutions_;
};

}  // namespace

std::unique_ptr<Graph> make_pose_encoder(Machine& machine, const Layers& layers) {
    return std::make_unique<PoseEncoder>(machine, layers);
}

}  // namespace posecrafter::cpu
