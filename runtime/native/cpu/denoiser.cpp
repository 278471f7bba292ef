// One solver step: ControlNet, UNet, guidance, x_next = a x + b eps. finetune/network.py is the same in PyTorch.
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "blocks.hpp"
#include "graphs.hpp"

namespace posecrafter::cpu {

namespace {

/* What the configuration says of both networks. */
struct Size {
    explicit Size(const Layers& layers)
        : in(layers.whole("in_channels")),
          out(layers.whole("out_channels")),
          text(layers.whole("text_width")),
          layers(layers.whole("layers")),
          depth(layers.whole("depth")),
          groups(layers.whole("groups")),
          levels(layers.whole("levels")),
          eps(static_cast<float>(layers.number("eps"))),
          transformer_eps(static_cast<float>(layers.number("transformer_eps"))) {
        for (int level = 0; level < levels; ++level) {
            const std::string number = std::to_string(level);
            widths.push_back(layers.whole("width." + number));
            heads.push_back(layers.whole("heads." + number));
            attention.push_back(layers.number("attention." + number) != 0);
        }
        if (levels < 1 || levels > kMostLevels || layers.number("block_eps") != 1e-5)
            throw LayersError("the denoiser's sizes are none that this engine knows; take --engine onnxruntime");
    }
    int in, out, text, layers, depth, groups, levels;
    float eps, transformer_eps;
    std::vector<int> widths, heads;
    std::vector<bool> attention;
};

/* An activation and how its images are made up. */
struct Part {
    Images images;
    Fold fold;
};

/* What a pass's layers all see. */
struct Context {
    Time time;
    Text text;
};

/* One resolution's ResBlocks and Transformers. */
struct Level {
    Level(Machine& machine, const Layers& layers, const std::string& name, const Size& size, int level, int count) {
        const std::size_t at = static_cast<std::size_t>(level);
        for (int index = 0; index < count; ++index) {
            const std::string number = std::to_string(index);
            blocks.emplace_back(machine, layers, name + ".resnets." + number, size.groups, size.eps, true);
            if (size.attention[at])
                attentions.emplace_back(machine, layers, name + ".attentions." + number, size.heads[at], size.depth,
                                        size.groups, size.transformer_eps);
        }
    }

    Part layer(Machine& machine, std::size_t index, const Images& x, Fold fold, const Context& context) const {
        Images y = blocks[index].run(machine, x, context.time, fold.frames);
        if (attentions.empty()) return {std::move(y), fold};
        return {attentions[index].run(machine, y, context.text, fold), fold.done()};
    }

    std::vector<ResBlock> blocks;
    std::vector<Transformer> attentions;
    std::optional<Convolution3x3> resize;  // downsampling, or what follows doubling
};

/* What UNet and ControlNet share: the way down and the middle. */
class Network {
  public:
    Network(Machine& machine, const Layers& layers, const std::string& name, const Size& size)
        : conv_in_(machine, layers, name + ".conv_in"),
          time1_(machine, layers, {name + ".time_embedding.linear_1"}),
          time2_(machine, layers, {name + ".time_embedding.linear_2"}),
          middle1_(machine, layers, name + ".mid_block.resnets.0", size.groups, size.eps, true),
          middle2_(machine, layers, name + ".mid_block.resnets.1", size.groups, size.eps, true),
          across_(machine, layers, name + ".mid_block.attentions.0", size.heads.back(), size.depth, size.groups,
                  size.transformer_eps) {
        check_width(time1_.outputs(), time2_.inputs());
        for (int level = 0; level < size.levels; ++level) {
            const std::string own = name + ".down_blocks." + std::to_string(level);
            down_.emplace_back(machine, layers, own, size, level, size.layers);
            if (level + 1 < size.levels) down_.back().resize.emplace(machine, layers, own + ".downsamplers.0.conv", 2);
        }
    }

    int time_width() const { return time2_.outputs(); }

    /* silu of the time embedding, [E]: sinusoids, cosines first, through two products. */
    Block embed(Machine& machine, std::int64_t timestep) const {
        const int width = time1_.inputs(), half = width / 2, wide = time2_.outputs();
        Block waves = machine.arena.take(static_cast<std::size_t>(width)), inner = machine.arena.take(wide),
              out = machine.arena.take(wide);
        const auto activate = [](float* x, int count) {
            for (int i = 0; i < count; ++i) x[i] = x[i] / (1 + std::exp(-x[i]));
        };
        machine.share(1, [&](int) {
            for (int i = 0; i < half; ++i) {
                const float angle =
                    static_cast<float>(timestep) * std::exp(-std::log(10000.0f) * (static_cast<float>(i) / half));
                waves.data()[i] = std::cos(angle);
                waves.data()[half + i] = std::sin(angle);
            }
            machine.k.multiply(time1_.product(waves.data(), inner.data()), 0, 1);
            activate(inner.data(), wide);
            machine.k.multiply(time2_.product(inner.data(), out.data()), 0, 1);
            activate(out.data(), wide);
        });
        return out;
    }

    /* conv_in's output, and `add` where there is one. */
    Part begin(Machine& machine, const Images& x, const Images& add, Fold fold) const {
        if (add.channels) check_width(add.channels, conv_in_.outputs());
        return {conv_in_.run(machine, x, {}, nullptr, add.channels ? add.data() : nullptr), fold};
    }

    /* Layers on the way down, the middle the last of them; each makes the next skip, or the middle's output, from the
     * skip before. */
    std::size_t layers() const {
        std::size_t count = 1;
        for (const Level& level : down_) count += level.blocks.size() + level.resize.has_value();
        return count;
    }

    Part next(Machine& machine, std::size_t layer, const Part& skip, const Context& context) const {
        for (const Level& level : down_) {
            if (layer < level.blocks.size()) return level.layer(machine, layer, skip.images, skip.fold, context);
            layer -= level.blocks.size();
            if (level.resize && layer-- == 0) return {level.resize->run(machine, skip.images), skip.fold};
        }
        Images y = middle1_.run(machine, skip.images, context.time, skip.fold.frames);
        y = across_.run(machine, y, context.text, skip.fold);
        return {middle2_.run(machine, y, context.time, skip.fold.frames), skip.fold.done()};
    }

  private:
    Convolution3x3 conv_in_;
    Linear time1_, time2_;
    std::vector<Level> down_;
    ResBlock middle1_, middle2_;
    Transformer across_;
};

class Denoiser : public Graph {
  public:
    Denoiser(Machine& machine, const Layers& layers)
        : size_(layers),
          control_(machine, layers, "controlnet", size_),
          unet_(machine, layers, "unet", size_),
          norm_out_(layers, "unet.conv_norm_out", size_.groups, size_.eps),
          conv_out_(machine, layers, "unet.conv_out") {
        check_width(conv_out_.outputs(), size_.out);
        for (int index = 0; layers.has("controlnet.controlnet_down_blocks." + std::to_string(index) + ".weight");
             ++index)
            residuals_.emplace_back(machine, layers,
                                    std::vector{"controlnet.controlnet_down_blocks." + std::to_string(index)});
        residuals_.emplace_back(machine, layers, std::vector<std::string>{"controlnet.controlnet_mid_block"});
        if (residuals_.size() != unet_.layers() + 1)
            throw LayersError("ControlNet and UNet have different skips; export the bundle again");
        for (int index = 0; index < size_.levels; ++index) {
            const std::string own = "unet.up_blocks." + std::to_string(index);
            up_.emplace_back(machine, layers, own, size_, size_.levels - 1 - index, size_.layers + 1);
            if (index + 1 < size_.levels) up_.back().resize.emplace(machine, layers, own + ".upsamplers.0.conv");
        }
    }

    std::vector<Made> run(Machine& machine, const std::vector<Given>& given) override {
        const Given &latents = given[0], &text = given[4];
        check_sizes("x", latents, {0, size_.in, 0, 0});
        check_sizes("timestep", given[1], {1}, true);
        for (const auto& [index, name] : {std::pair(2, "a"), {3, "b"}, {7, "control_scale"}})
            check_sizes(name, given[index], std::vector<int>(given[index].sizes.empty() ? 0 : 1, 1));
        check_sizes("text", text, {0, 0, size_.text});
        check_sizes("weight", given[5], {text.sizes[0]});
        const int frames = latents.sizes[0], high = latents.sizes[2], wide = latents.sizes[3];
        check_sizes("pose_features", given[6], {frames, size_.widths[0], high, wide});
        check_cells({text.sizes[0], frames, high, wide});
        const int least = 1 << (size_.levels - 1);
        if (high < least || wide < least)
            throw LayersError("x has fewer than " + std::to_string(least) + " cells a side");
        if (sizes_ != std::pair(latents.sizes, text.sizes)) {
            machine.arena.trim();
            sizes_ = {latents.sizes, text.sizes};
        }
        const Fold fold{text.sizes[0], frames};
        const std::int64_t timestep = given[1].integers()[0];
        const Block time = unet_.embed(machine, timestep), control_time = control_.embed(machine, timestep);
        const Text words{text.floats(), text.sizes[0], text.sizes[1], text.sizes[2]};
        const Context context{{time.data(), unet_.time_width()}, words};
        const Context control{{control_time.data(), control_.time_width()}, words};

        const Images x = from_planar(machine, latents);
        std::vector<Part> skips = controlled(machine, x, given[6], fold, context, control, given[7].floats()[0]);
        const Images eps = up(machine, skips, context);
        return mix(machine, eps, latents, given[5].floats(), given[2].floats()[0], given[3].floats()[0]);
    }

  private:
    /* The UNet's skips and middle with ControlNet's residuals added, `scale` times. The networks go down side by side,
     * so that of ControlNet nothing is kept. */
    std::vector<Part> controlled(Machine& machine, const Images& x, const Given& pose, Fold fold,
                                 const Context& context, const Context& of_control, float scale) const {
        std::vector<Part> skips;
        skips.push_back(unet_.begin(machine, x, {}, fold));
        Part control = control_.begin(machine, x, from_planar(machine, pose), fold);
        for (std::size_t layer = 0; layer < unet_.layers(); ++layer) {
            Part below = unet_.next(machine, layer, skips.back(), context);
            Part below_control = control_.next(machine, layer, control, of_control);
            add_residual(machine, residuals_[layer], control.images, skips.back().images, scale);
            skips.push_back(std::move(below)), control = std::move(below_control);
        }
        add_residual(machine, residuals_.back(), control.images, skips.back().images, scale);
        return skips;
    }

    static void add_residual(Machine& machine, const Linear& layer, const Images& control, const Images& skip,
                             float scale) {
        check_width(control.channels, layer.inputs());
        check_width(skip.channels, layer.outputs());
        Product product = layer.product(control.data(), skip.data());
        product.factor = scale, product.add = skip.data();
        machine.by_rows(skip.rows(), 96, [&](int begin, int end) { machine.k.multiply(product, begin, end); });
    }

    /* From the middle, the last of `skips`, back up: eps of every prompt, [B*F, h, w, L]. */
    Images up(Machine& machine, std::vector<Part>& skips, const Context& context) const {
        Part y = std::move(skips.back());
        skips.pop_back();
        for (const Level& level : up_) {
            for (std::size_t index = 0; index < level.blocks.size(); ++index) {
                const Images both = join(machine, y, skips.back());
                skips.pop_back();
                y = level.layer(machine, index, both, y.fold, context);
            }
            if (level.resize) {
                const Images& beside = skips.back().images;
                y.images = level.resize->run(machine, y.images, {}, beside.high, beside.wide);
            }
        }
        const Scaling scaling = norm_out_.scaling(machine, y.images, y.fold.frames);
        return conv_out_.run(machine, y.images, {&scaling, true});
    }

    /* Channels of what comes from below, then of the skip beside it, which the prompts may still share. */
    static Images join(Machine& machine, const Part& below, const Part& skip) {
        const Images &y = below.images, &s = skip.images;
        Images both = machine.images(y.count, y.high, y.wide, y.channels + s.channels);
        machine.share(y.count, [&](int image) {
            const float *left = y.image(image), *right = s.image(s.count == y.count ? image : image % s.count);
            float* to = both.image(image);
            for (int cell = 0; cell < y.cells(); ++cell, to += both.channels, left += y.channels, right += s.channels) {
                std::memcpy(to, left, sizeof(float) * static_cast<std::size_t>(y.channels));
                std::memcpy(to + y.channels, right, sizeof(float) * static_cast<std::size_t>(s.channels));
            }
        });
        return both;
    }

    std::vector<Made> mix(Machine& machine, const Images& each, const Given& x, const float* weight, float a,
                          float b) const {
        check_width(each.channels, x.sizes[1]);
        const int frames = x.sizes[0], prompts = each.count / frames;
        const std::size_t count = each.size() / static_cast<std::size_t>(prompts);
        const Block mixed = machine.arena.take(count);
        Made next = made(machine, "x_next", x.sizes), eps = made(machine, "eps", x.sizes);
        machine.share(frames, [&](int frame) {
            const std::size_t own = count / static_cast<std::size_t>(frames),
                              first = own * static_cast<std::size_t>(frame);
            for (std::size_t i = first; i < first + own; ++i) {
                float sum = 0;
                for (int prompt = 0; prompt < prompts; ++prompt)
                    sum += weight[prompt] * each.data()[static_cast<std::size_t>(prompt) * count + i];
                mixed.data()[i] = sum;
            }
            to_planar(mixed.data() + first, 1, each.cells(), each.channels, eps.data.get() + first);
            for (std::size_t i = first; i < first + own; ++i) next.data[i] = a * x.floats()[i] + b * eps.data[i];
        });
        std::vector<Made> outputs;
        outputs.push_back(std::move(next));
        outputs.push_back(std::move(eps));
        return outputs;
    }

    Size size_;
    Network control_, unet_;
    std::vector<Linear> residuals_;
    std::vector<Level> up_;
    GroupNorm norm_out_;
    Convolution3x3 conv_out_;
    std::pair<std::vector<int>, std::vector<int>> sizes_;
};

}  // namespace

std::unique_ptr<Graph> make_denoiser(Machine& machine, const Layers& layers) {
    return std::make_unique<Denoiser>(machine, layers);
}

}  // namespace posecrafter::cpu
