// Pose maps to ControlNet's features: convolutions, every second one halving.
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
        const Images maps = from_planar(machine, given[0]);
        Images x = convolutions_[0].run(machine, maps);
        for (std::size_t index = 1; index < convolutions_.size(); ++index)
            x = convolutions_[index].run(machine, x, {nullptr, true});
        std::vector<Made> outputs;
        outputs.push_back(made(machine, "pose_features", {x.count, x.channels, x.high, x.wide}));
        machine.share(1, [&](int) { to_planar(x.data(), x.count, x.cells(), x.channels, outputs[0].data.get()); });
        return outputs;
    }

  private:
    std::vector<Convolution3x3> convolutions_;
};

}  // namespace

std::unique_ptr<Graph> make_pose_encoder(Machine& machine, const Layers& layers) {
    return std::make_unique<PoseEncoder>(machine, layers);
}

}  // namespace posecrafter::cpu
