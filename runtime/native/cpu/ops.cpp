#include "ops.hpp"

#include <cmath>
#include <cstring>

namespace posecrafter::cpu {

namespace {

constexpr int kRowBlock = 96;
/* Winograd's form of a convolution needs four times its weights' memory, and transforms whole vectors of channels: it
 * is for no more than so many weights, where the images are large, and for no fewer channels. */
constexpr int kWidest = 640 * 960, kNarrow = 16;

/* Rows and columns of a matrix [outputs, inputs], or of a 1x1 convolution's weight. */
void check_matrix(const Tensor& weight, const std::string& name) {
    std::size_t size = 1;
    for (std::size_t i = 2; i < weight.sizes.size(); ++i) size *= static_cast<std::size_t>(weight.sizes[i]);
    if (weight.sizes.size() < 2 || size != 1) throw LayersError(name + " is no matrix; export the bundle again");
}

Floats vector_of(const Layers& layers, const std::string& name, int count) {
    const Tensor& tensor = layers.tensor(name);
    if (tensor.sizes.size() != 1 || tensor.sizes[0] != count)
        throw LayersError(name + " has not " + std::to_string(count) + " numbers; export the bundle again");
    return tensor.floats();
}

/* [inputs, outputs, 4, 4] of doubling and a convolution in one -> the convolution's [outputs, inputs, 3, 3]. */
Floats undoubled(const Tensor& weight, int inputs, int outputs) {
    const Floats sums = weight.floats();
    Floats out = make_floats(static_cast<std::size_t>(inputs) * outputs * 9);
    // Of one dimension's taps t the sums are t2, t1 + t2, t0 + t1, t0; a transposed convolution counts backwards.
    for (int i = 0; i < inputs; ++i)
        for (int o = 0; o < outputs; ++o) {
            const float* s = sums.get() + (static_cast<std::size_t>(i) * outputs + o) * 16;
            double rows[3][4];
            for (int x = 0; x < 4; ++x) {
                rows[0][x] = s[12 + x];
                rows[1][x] = static_cast<double>(s[4 + x]) - s[x];
                rows[2][x] = s[x];
            }
            float* w = out.get() + (static_cast<std::size_t>(o) * inputs + i) * 9;
            for (int y = 0; y < 3; ++y) {
                w[3 * y] = static_cast<float>(rows[y][3]);
                w[3 * y + 1] = static_cast<float>(rows[y][1] - rows[y][0]);
                w[3 * y + 2] = static_cast<float>(rows[y][0]);
            }
        }
    return out;
}

}  // namespace

void check_width(int found, int wanted) {
    if (found != wanted)
        throw LayersError("a layer of " + std::to_string(wanted) + " channels is given " + std::to_string(found) +
                          "; export the bundle again");
}

Machine::Machine(int count, bool bf16)
    : k(kernels()), bf16(bf16), threads(count), scratch_(static_cast<std::size_t>(count)) {}

Images Machine::images(int count, int high, int wide, int channels) {
    Images made{{}, count, high, wide, channels};
    made.block = arena.take(made.size());
    return made;
}

float* Machine::scratch(int thread, std::size_t count) {
    Scratch& own = scratch_[static_cast<std::size_t>(thread)];
    if (own.size < count) own = {make_floats(count), count};
    return own.data.get();
}

Linear::Linear(const Machine& machine, const Layers& layers, const std::vector<std::string>& names, bool bf16)
    : Linear(machine, layers, names, bf16, false) {}

Linear Linear::gated(const Machine& machine, const Layers& layers, const std::string& value, const std::string& gate,
                     bool bf16) {
    if (layers.tensor(value + ".weight").sizes != layers.tensor(gate + ".weight").sizes)
        throw LayersError(gate + " has another size than " + value + "; export the bundle again");
    layers.tensor(value + ".bias"), layers.tensor(gate + ".bias");  // both have one
    return Linear(machine, layers, {value, gate}, bf16, true);
}

Linear::Linear(const Machine& machine, const Layers& layers, const std::vector<std::string>& names, bool bf16,
               bool gated)
    : gated_(gated) {
    std::vector<const Tensor*> parts;
    bool biased = false;
    for (const std::string& name : names) {
        parts.push_back(&layers.tensor(name + ".weight"));
        check_matrix(*parts.back(), name);
        inputs_ = parts.back()->sizes[1];
        outputs_ += parts.back()->sizes[0];
        biased = biased || layers.has(name + ".bias");
    }
    const std::size_t inputs = static_cast<std::size_t>(inputs_);
    Floats stacked = make_floats(inputs * static_cast<std::size_t>(outputs_));
    if (biased) bias_ = make_floats(static_cast<std::size_t>(outputs_));
    std::size_t row = 0;
    for (std::size_t i = 0; i < names.size(); ++i) {
        const int rows = parts[i]->sizes[0];
        if (parts[i]->sizes[1] != inputs_)
            throw LayersError(names[i] + " has another width than " + names[0] + "; export the bundle again");
        std::memcpy(stacked.get() + row * inputs, parts[i]->floats().get(), sizeof(float) * parts[i]->count());
        if (layers.has(names[i] + ".bias"))
            std::memcpy(bias_.get() + row, vector_of(layers, names[i] + ".bias", rows).get(), sizeof(float) * rows);
        else if (biased)
            std::memset(bias_.get() + row, 0, sizeof(float) * rows);
        row += static_cast<std::size_t>(rows);
    }
    const Kernels& k = machine.k;
    bf16_ = bf16 && inputs_ <= k.longest_bf16;
    if (gated) {
        outputs_ /= 2;
        packed_ = make_floats(k.packed_size(inputs_, 2 * ((outputs_ + k.lanes - 1) / k.lanes * k.lanes)));
        const float* gates = stacked.get() + inputs * static_cast<std::size_t>(outputs_);
        (bf16_ ? k.pack_gated_bf16 : k.pack_gated)(stacked.get(), gates, 1, inputs_, inputs_, outputs_, packed_.get());
        return;
    }
    packed_ = make_floats(k.packed_size(inputs_, outputs_));
    (bf16_ ? k.pack_bf16 : k.pack)(stacked.get(), 1, inputs_, inputs_, outputs_, packed_.get());
}

Product Linear::product(const float* a, float* c) const {
    return {.a = a,
            .lda = inputs_,
            .b = packed_.get(),
            .bias = bias_.get(),
            .add = nullptr,
            .c = c,
            .ldc = outputs_,
            .k = inputs_,
            .n = outputs_,
            .bf16 = bf16_,
            .gated = gated_};
}

Affine::Affine(const Layers& layers, const std::string& name) {
    const Tensor& tensor = layers.tensor(name + ".weight");
    channels = static_cast<int>(tensor.count());
    weight = tensor.floats();
    bias = vector_of(layers, name + ".bias", channels);
}

GroupNorm::GroupNorm(const Layers& layers, const std::string& name, int groups, float eps)
    : affine_(layers, name), groups_(groups), eps_(eps) {
    if (groups < 1 || affine_.channels % groups != 0)
        throw LayersError(name + " has channels that " + std::to_string(groups) + " groups do not share");
}

Scaling GroupNorm::scaling(Machine& machine, const Images& x, int frames) const {
    check_width(x.channels, affine_.channels);
    const int channels = x.channels, share = channels / groups_, clips = x.count / frames;
    const std::size_t width = static_cast<std::size_t>(channels);
    Block moments = machine.arena.take(2 * width * static_cast<std::size_t>(x.count));
    machine.threads.share(x.count, [&](int image, int) {
        float* own = moments.data() + 2 * width * static_cast<std::size_t>(image);
        machine.k.moments(x.image(image), x.cells(), channels, own, own + width);
    });
    Scaling made{machine.arena.take(width * clips), machine.arena.take(width * clips), frames};
    for (int clip = 0; clip < clips; ++clip)
        for (int group = 0; group < groups_; ++group) {
            // Means and squares of equally many numbers: theirs together are Chan's sums.
            const float* first = moments.data() + 2 * width * static_cast<std::size_t>(clip * frames) + group * share;
            double mean = 0, squares = 0;
            for (int f = 0; f < frames; ++f)
                for (int i = 0; i < share; ++i) mean += first[2 * width * static_cast<std::size_t>(f) + i];
            mean /= static_cast<double>(frames) * share;
            for (int f = 0; f < frames; ++f)
                for (int i = 0; i < share; ++i) {
                    const float* own = first + 2 * width * static_cast<std::size_t>(f) + i;
                    squares += own[width] + x.cells() * (own[0] - mean) * (own[0] - mean);
                }
            const double variance = squares / (static_cast<double>(frames) * share * x.cells());
            const double factor = 1 / std::sqrt(variance + eps_);
            for (int i = group * share; i < (group + 1) * share; ++i) {
                const std::size_t place = width * static_cast<std::size_t>(clip) + i;
                made.scale.data()[place] = static_cast<float>(affine_.weight[i] * factor);
                made.shift.data()[place] = static_cast<float>(affine_.bias[i] - affine_.weight[i] * factor * mean);
            }
        }
    return made;
}

Convolution3x3::Convolution3x3(Machine& machine, const Layers& layers, const std::string& name, int stride)
    : stride_(stride) {
    const Tensor& weight = layers.tensor(name + ".weight");
    const bool doubled = weight.sizes.size() == 4 && weight.sizes[2] == 4;
    if (weight.sizes.size() != 4 || weight.sizes[2] != weight.sizes[3] || (!doubled && weight.sizes[2] != 3))
        throw LayersError(name + " is no 3x3 convolution; export the bundle again");
    outputs_ = weight.sizes[doubled ? 1 : 0], inputs_ = weight.sizes[doubled ? 0 : 1];
    winograd_ = stride == 1 && inputs_ >= kNarrow && inputs_ <= kWidest / outputs_;
    const Floats taps = doubled ? undoubled(weight, inputs_, outputs_) : weight.floats();
    packed_ = make_floats(machine.k.convolution_size(inputs_, outputs_, winograd_));
    machine.k.pack_convolution(taps.get(), inputs_, outputs_, winograd_, packed_.get());
    bias_ = vector_of(layers, name + ".bias", outputs_);
}

Images Convolution3x3::run(Machine& machine, const Images& x, Reading reading, int high, int wide, const float* bias,
                           const float* add) const {
    check_width(x.channels, inputs_);
    Images y = machine.images(x.count, high, wide, outputs_);
    const Convolution work{.x = x.data(),
                           .images = x.count,
                           .high = x.high,
                           .wide = x.wide,
                           .inputs = inputs_,
                           .out_high = high,
                           .out_wide = wide,
                           .outputs = outputs_,
                           .stride = stride_,
                           .scale = reading.norm ? reading.norm->scale.data() : nullptr,
                           .shift = reading.norm ? reading.norm->shift.data() : nullptr,
                           .frames = reading.norm ? reading.norm->frames : x.count,
                           .silu = reading.silu,
                           .weights = packed_.get(),
                           .winograd = winograd_,
                           .bias = bias ? bias : bias_.get(),
                           .add = add,
                           .y = y.data()};
    const int units = machine.k.convolution_units(work, machine.threads.count());
    const std::size_t floats = machine.k.convolution_scratch(work, units);
    machine.threads.share(
        units, [&](int unit, int thread) { machine.k.convolve(work, unit, units, machine.scratch(thread, floats)); });
    return y;
}

Images Convolution3x3::run(Machine& machine, const Images& x, Reading reading, const float* bias,
                           const float* add) const {
    const bool halves = stride_ == 2;
    return run(machine, x, reading, halves ? (x.high + 1) / 2 : x.high, halves ? (x.wide + 1) / 2 : x.wide, bias, add);
}

Images multiply(Machine& machine, const Linear& layer, const Images& x, const float* add) {
    check_width(x.channels, layer.inputs());
    Images y = machine.images(x.count, x.high, x.wide, layer.outputs());
    Product product = layer.product(x.data(), y.data());
    product.add = add;
    machine.by_rows(x.rows(), kRowBlock, [&](int begin, int end, int) { machine.k.multiply(product, begin, end); });
    return y;
}

}  // namespace posecrafter::cpu
