// Latents to frames: the decoder of Stable Diffusion's autoencoder.
#include <algorithm>
#include <optional>
#include <utility>

#include "blocks.hpp"
#include "graphs.hpp"

namespace posecrafter::cpu {

namespace {

/* The middle's attention: each image's cells see each other, in one head or several. */
class ImageAttention {
  public:
    ImageAttention(Machine& machine, const Layers& layers, const std::string& name, int groups, float eps, int heads)
        : norm_(layers, name + ".group_norm", groups, eps),
          projected_(machine, layers, {name + ".to_q", name + ".to_k", name + ".to_v"}),
          out_(machine, layers, {name + ".to_out.0"}),
          heads_(heads) {
        const int width = out_.outputs();
        if (heads < 1 || width % heads != 0 || out_.inputs() != width || projected_.inputs() != width ||
            projected_.outputs() != 3 * width)
            throw LayersError(name + " has widths that do not belong together; export the bundle again");
    }

    Images run(Machine& machine, const Images& x) const {
        const int width = x.channels, cells = x.cells(), head = width / heads_;
        const Scaling scaling = norm_.scaling(machine, x, 1);
        Images rows = machine.images(x.count, x.high, x.wide, 3 * width),
               seen = machine.images(x.count, x.high, x.wide, width);
        const Product product = projected_.product(seen.data(), rows.data());
        machine.share(x.count, [&](int image) {
            const std::size_t own = static_cast<std::size_t>(image) * static_cast<std::size_t>(width);
            machine.k.scale_shift(x.image(image), cells, width, scaling.scale.data() + own, scaling.shift.data() + own,
                                  seen.image(image));
            machine.k.multiply(product, image * cells, (image + 1) * cells);
        });
        const std::size_t packed = machine.k.packed_head_size(cells, head);
        const std::size_t needed = packed + machine.k.attend_scratch(cells, head);
        machine.share(x.count * heads_, needed, [&](int index, float* keys) {
            const int image = index / heads_;
            const float* first = rows.image(image);
            const Attention attention{
                first,  first + width, first + 2 * width, seen.image(image), 3 * width, 3 * width, width, cells,
                heads_, head};
            machine.k.pack_head(attention, index % heads_, keys);
            machine.k.attend(attention, index % heads_, keys, 0, cells, keys + packed);
        });
        return multiply(machine, out_, seen, x.data());
    }

  private:
    GroupNorm norm_;
    Linear projected_, out_;
    int heads_;
};

class Decoder : public Graph {
  public:
    Decoder(Machine& machine, const Layers& layers)
        : channels_(layers.whole("in_channels")),
          scaling_(static_cast<float>(layers.number("scaling_factor"))),
          conv_in_(machine, layers, "decoder.conv_in"),
          norm_out_(layers, "decoder.conv_norm_out", layers.whole("groups"),
                    static_cast<float>(layers.number("norm_eps"))),
          conv_out_(machine, layers, "decoder.conv_out") {
        const int groups = layers.whole("groups"), levels = layers.whole("levels"), count = layers.whole("layers");
        const float eps = static_cast<float>(layers.number("eps"));
        if (levels < 1 || levels > kMostLevels)
            throw LayersError("the decoder's sizes are none that this engine knows; take --engine onnxruntime");
        if (layers.number("post_quant") != 0)
            post_quant_.emplace(machine, layers, std::vector<std::string>{"post_quant_conv"});
        for (int index = 0; index < 2; ++index)
            middle_.emplace_back(machine, layers, "decoder.mid_block.resnets." + std::to_string(index), groups, eps,
                                 false);
        if (layers.number("attention") != 0)
            attention_.emplace(machine, layers, "decoder.mid_block.attentions.0", layers.whole("attention_groups"),
                               static_cast<float>(layers.number("attention_eps")), layers.whole("attention_heads"));
        for (int level = 0; level < levels; ++level) {
            const std::string own = "decoder.up_blocks." + std::to_string(level);
            up_.emplace_back();
            for (int index = 0; index < count; ++index)
                up_.back().blocks.emplace_back(machine, layers, own + ".resnets." + std::to_string(index), groups, eps,
                                               false);
            if (layers.has(own + ".upsamplers.0.conv.weight"))
                up_.back().resize.emplace(machine, layers, own + ".upsamplers.0.conv");
        }
    }

    std::vector<Made> run(Machine& machine, const std::vector<Given>& given) override {
        check_sizes("latents", given[0], {0, channels_, 0, 0});
        int grown = 1;
        for (const Level& level : up_) grown *= level.resize ? 2 : 1;
        check_cells({given[0].sizes[0], given[0].sizes[2], given[0].sizes[3], grown, grown});
        if (sizes_ != given[0].sizes) {
            machine.arena.trim();
            sizes_ = given[0].sizes;
        }
        const int count = given[0].sizes[0];
        const int most = together(machine, given[0].sizes[2] * given[0].sizes[3] * grown * grown);
        std::vector<Made> outputs;
        for (int first = 0; first < count; first += most) {
            const Images x = decode(machine, part(machine, given[0], first, std::min(most, count - first)));
            if (outputs.empty()) outputs.push_back(made(machine, "frames", {count, x.high, x.wide, x.channels}));
            const std::size_t image = x.size() / std::size_t(x.count);
            machine.share(x.count, [&](int index) {
                const float* from = x.image(index);
                float* to = outputs[0].data.get() + std::size_t(first + index) * image;
                for (std::size_t i = 0; i < image; ++i) to[i] = std::clamp((from[i] + 1) * 127.5f, 0.0f, 255.0f);
            });
        }
        return outputs;
    }

  private:
    struct Level {
        std::vector<ResBlock> blocks;
        std::optional<Convolution3x3> resize;
    };
    Images decode(Machine& machine, const Given& latents) const {
        Images x = from_planar(machine, latents);
        machine.share(1, [&](int) {
            for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] /= scaling_;
        });
        if (post_quant_) x = multiply(machine, *post_quant_, x);
        x = middle_[0].run(machine, conv_in_.run(machine, x), {}, 1);
        if (attention_) x = attention_->run(machine, x);
        x = middle_[1].run(machine, x, {}, 1);
        for (const Level& level : up_) {
            for (const ResBlock& block : level.blocks) x = block.run(machine, x, {}, 1);
            if (level.resize) x = level.resize->run(machine, x, {}, 2 * x.high, 2 * x.wide);
        }
        const Scaling scaling = norm_out_.scaling(machine, x, 1);
        return conv_out_.run(machine, x, {&scaling, true});
    }

    int channels_;
    float scaling_;
    std::optional<Linear> post_quant_;
    Convolution3x3 conv_in_;
    std::vector<ResBlock> middle_;
    std::optional<ImageAttention> attention_;
    std::vector<Level> up_;
    GroupNorm norm_out_;
    Convolution3x3 conv_out_;
    std::vector<int> sizes_;
};

}  // namespace

std::unique_ptr<Graph> make_decoder(Machine& machine, const Layers& layers) {
    return std::make_unique<Decoder>(machine, layers);
}

}  // namespace posecrafter::cpu
