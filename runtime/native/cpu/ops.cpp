#include "ops.hpp"

#include <algorithm>
#include <cmath>

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

const Tensor& vector_of(const Layers& layers, const std::string& name, int count) {
    const Tensor& tensor = layers.tensor(name);
    if (tensor.sizes.size() != 1 || tensor.sizes[0] != count)
        throw LayersError(name + " has not " + std::to_string(count) + " numbers; export the bundle again");
    return tensor;
}

/* Rows [begin, begin + count) of matrices [outputs, inputs] one above the other. */
void stacked(const std::vector<const Tensor*>& parts, int begin, int count, float* out) {
    for (const Tensor* part : parts) {
        const int rows = part->sizes[0], some = std::min(count, rows - begin);
        if (some > 0) {
            part->rows(begin, some, out);
            out += static_cast<std::size_t>(some) * static_cast<std::size_t>(part->sizes[1]);
            begin += some, count -= some;
        }
        begin -= rows;
    }
}

/* Of [inputs, outputs, 4, 4], doubling and a convolution in one, the convolution's rows [begin, begin + count) of
 * [outputs, inputs, 3, 3]. */
void undoubled(const Tensor& weight, int begin, int count, float* out) {
    const int inputs = weight.sizes[0], outputs = weight.sizes[1];
    std::vector<float> sums(static_cast<std::size_t>(count) * 16);
    // Of one dimension's taps t the sums are t2, t1 + t2, t0 + t1, t0; a transposed convolution counts backwards.
    for (int i = 0; i < inputs; ++i) {
        weight.read((static_cast<std::size_t>(i) * outputs + begin) * 16, sums.size(), sums.data());
        for (int o = 0; o < count; ++o) {
            const float* s = sums.data() + static_cast<std::size_t>(o) * 16;
            double rows[3][4];
            for (int x = 0; x < 4; ++x) {
                rows[0][x] = s[12 + x];
                rows[1][x] = static_cast<double>(s[4 + x]) - s[x];
                rows[2][x] = s[x];
            }
            float* w = out + (static_cast<std::size_t>(o) * inputs + i) * 9;
            for (int y = 0; y < 3; ++y) {
                w[3 * y] = static_cast<float>(rows[y][3]);
                w[3 * y + 1] = static_cast<float>(rows[y][1] - rows[y][0]);
                w[3 * y + 2] = static_cast<float>(rows[y][0]);
            }
        }
    }
}

}  // namespace

void check_width(int found, int wanted) {
    if (found != wanted)
        throw LayersError("a layer of " + std::to_string(wanted) + " channels is given " + std::to_string(found) +
                          "; export the bundle again");
}

Machine::Machine(int threads, bool bf16, bool counting)
    : k(kernels()),
      threads(threads),
      bf16(bf16),
      counting(counting),
      arena(counting),
      pool_(counting ? 1 : threads),
      scratch_(static_cast<std::size_t>(threads)) {}

int Machine::block_of(int groups, int rows, int most, int tile) const {
    constexpr int kApart = 6;  // what a block costs beside its rows, in rows: weights that are read again
    int best = most, least = 0;
    for (int block = most / tile * tile; block >= tile; block -= tile) {
        const int blocks = groups * ((rows + block - 1) / block),
                  work = (blocks + threads - 1) / threads * (block + kApart);
        if (least == 0 || work < least) least = work, best = block;
    }
    return best;
}

Images Machine::images(int count, int high, int wide, int channels) {
    Images made{{}, count, high, wide, channels};
    made.block = arena.take(made.size());
    return made;
}

Floats Machine::keep(std::size_t count) {
    kept_ += count;
    return counting ? nullptr : make_floats(count);
}

float* Machine::scratch(int thread, std::size_t count) {
    Scratch& own = scratch_[static_cast<std::size_t>(thread)];
    if (own.size < count) own = {make_floats(count), count};
    return own.data.get();
}

Linear::Linear(Machine& machine, const Layers& layers, const std::vector<std::string>& names, bool bf16)
    : Linear(machine, layers, names, bf16, false) {}

Linear Linear::gated(Machine& machine, const Layers& layers, const std::string& value, const std::string& gate,
                     bool bf16) {
    if (layers.tensor(value + ".weight").sizes != layers.tensor(gate + ".weight").sizes)
        throw LayersError(gate + " has another size than " + value + "; export the bundle again");
    layers.tensor(value + ".bias"), layers.tensor(gate + ".bias");  // both have one
    return Linear(machine, layers, {value, gate}, bf16, true);
}

Linear::Linear(Machine& machine, const Layers& layers, const std::vector<std::string>& names, bool bf16, bool gated)
    : gated_(gated) {
    std::vector<const Tensor*> parts;
    bool biased = false;
    for (const std::string& name : names) {
        parts.push_back(&layers.tensor(name + ".weight"));
        check_matrix(*parts.back(), name);
        if (parts.back()->sizes[1] != parts[0]->sizes[1])
            throw LayersError(name + " has another width than " + names[0] + "; export the bundle again");
        outputs_ += parts.back()->sizes[0];
        biased = biased || layers.has(name + ".bias");
    }
    inputs_ = parts[0]->sizes[1];
    bf16_ = bf16 && inputs_ <= machine.k.longest_bf16;
    weights_ = layers.weights(names, [&] {
        Weights made{pack(machine, parts), nullptr};
        if (biased) made.bias = make_floats(static_cast<std::size_t>(outputs_));
        for (std::size_t i = 0, row = 0; biased && i < names.size();
             row += static_cast<std::size_t>(parts[i]->sizes[0]), ++i) {
            const int rows = parts[i]->sizes[0];
            if (layers.has(names[i] + ".bias"))
                vector_of(layers, names[i] + ".bias", rows).rows(0, rows, made.bias.get() + row);
            else
                std::fill_n(made.bias.get() + row, rows, 0.0f);
        }
        return made;
    });
    if (gated) outputs_ /= 2;
}

/* By panels, each on one thread: two vectors of columns, or one of values' and one of gates'. */
Floats Linear::pack(Machine& machine, const std::vector<const Tensor*>& parts) const {
    const Kernels& k = machine.k;
    const int width = gated_ ? k.lanes : 2 * k.lanes, columns = gated_ ? parts[0]->sizes[0] : outputs_;
    const int panels = (columns + width - 1) / width;
    const std::size_t inputs = static_cast<std::size_t>(inputs_), lanes = static_cast<std::size_t>(k.lanes);
    const std::size_t panel = k.packed_size(bf16_ ? (inputs_ + 1) / 2 : inputs_, 1);
    Floats packed = machine.keep(panel * static_cast<std::size_t>(panels));
    machine.share(panels, 2 * lanes * inputs, [&](int index, float* own) {
        const int left = index * width, count = std::min(width, columns - left);
        float* to = packed.get() + panel * static_cast<std::size_t>(index);
        if (gated_) {
            float* gates = own + lanes * inputs;
            parts[0]->rows(left, count, own);
            parts[1]->rows(left, count, gates);
            (bf16_ ? k.pack_gated_bf16 : k.pack_gated)(own, gates, 1, inputs_, inputs_, count, to);
            return;
        }
        stacked(parts, left, count, own);
        (bf16_ ? k.pack_bf16 : k.pack)(own, 1, inputs_, inputs_, count, to);
    });
    return packed;
}

Product Linear::product(const float* a, float* c) const {
    return {.a = a,
            .lda = inputs_,
            .b = weights_->packed.get(),
            .bias = weights_->bias.get(),
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
    const Tensor& shift = vector_of(layers, name + ".bias", channels);
    weights = layers.weights({name}, [&] { return Weights{tensor.floats(), shift.floats()}; });
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
    machine.share(x.count, [&](int image) {
        float* own = moments.data() + 2 * width * static_cast<std::size_t>(image);
        machine.k.moments(x.image(image), x.cells(), channels, own, own + width);
    });
    Scaling made{machine.arena.take(width * clips), machine.arena.take(width * clips), frames};
    machine.share(clips, [&](int clip) {
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
                made.scale.data()[place] = static_cast<float>(affine_.weight()[i] * factor);
                made.shift.data()[place] = static_cast<float>(affine_.bias()[i] - affine_.weight()[i] * factor * mean);
            }
        }
    });
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
    const Tensor& bias = vector_of(layers, name + ".bias", outputs_);
    weights_ = layers.weights({name}, [&] { return Weights{pack(machine, weight), bias.floats()}; });
}

Floats Convolution3x3::pack(Machine& machine, const Tensor& weight) const {
    const Kernels& k = machine.k;
    const int width = 2 * k.lanes, panels = (outputs_ + width - 1) / width;
    const std::size_t taps = 9 * static_cast<std::size_t>(inputs_) * static_cast<std::size_t>(width);
    Floats packed = machine.keep(k.convolution_size(inputs_, outputs_, winograd_));
    machine.share(panels, taps, [&](int panel, float* own) {
        const int begin = panel * width, count = std::min(width, outputs_ - begin);
        if (weight.sizes[2] == 4)
            undoubled(weight, begin, count, own);
        else
            weight.rows(begin, count, own);
        k.pack_convolution(own, begin, count, inputs_, outputs_, winograd_, packed.get());
    });
    return packed;
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
                           .weights = weights_->packed.get(),
                           .winograd = winograd_,
                           .bias = bias ? bias : weights_->bias.get(),
                           .add = add,
                           .y = y.data()};
    const Units units = machine.k.convolution_units(work, machine.threads);
    machine.share(units.count(), machine.k.convolution_scratch(work, units),
                  [&](int unit, float* scratch) { machine.k.convolve(work, unit, units, scratch); });
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
    machine.by_rows(x.rows(), kRowBlock, [&](int begin, int end) { machine.k.multiply(product, begin, end); });
    return y;
}

}  // namespace posecrafter::cpu
