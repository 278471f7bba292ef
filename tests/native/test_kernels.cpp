// Every instruction set's kernels against plain loops in double, on sizes that fill no vector; what lies beside their
// outputs stays as it was. What they read is allocated to the number, so that AddressSanitizer sees a read beyond it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "kernels.hpp"

namespace {

using namespace posecrafter::cpu;
using Values = std::vector<float>;
using Truth = std::vector<double>;

// Of an output, or of 1 where that is more: Winograd's transforms lose two of float32's seven digits, all else less.
constexpr double kTolerance = 5e-5;
constexpr float kUntouched = 1234.5F;

// Numbers evenly in -size..size, the same in every run.
Values noise(std::size_t count, float size = 1) {
    static std::uint32_t state = 1;
    Values values(count);
    for (float& value : values) {
        state = state * 1664525 + 1013904223;
        value = size * (static_cast<float>(state >> 8) / 8388608.0F - 1);
    }
    return values;
}

std::size_t at(int index, int stride = 1) {
    return static_cast<std::size_t>(index) * static_cast<std::size_t>(stride);
}

float to_bf16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    std::memcpy(&x, &bits, 4);
    return x;
}

double silu(double x) {
    return x / (1 + std::exp(-x));
}

double gelu(double x) {
    return x * 0.5 * (1 + std::erf(x / std::sqrt(2.0)));
}

// Claims that out holds the truth; NAN in it: what has to be untouched.
void same(const std::string& what, const Values& out, const Truth& truth) {
    double worst = 0;
    for (std::size_t i = 0; i < truth.size(); ++i) {
        const double expected = std::isnan(truth[i]) ? kUntouched : truth[i];
        const double off = std::abs(out[i] - expected) / std::max(1.0, std::abs(expected));
        if (!(off <= worst)) worst = off;
    }
    claim(worst <= kTolerance, what + " is off by " + std::to_string(worst), __LINE__);
}

std::string sizes(std::initializer_list<int> all) {
    std::string text;
    for (const int size : all) text += " " + std::to_string(size);
    return text;
}

// a [m, k] b [k, n], on rows 1..m where there are several, in rows wider than their matrices.
void products(const Kernels& kernels, int m, int k, int n, bool half) {
    const int begin = m > 1, lda = k + 3, ldc = n + 5;
    Values a = noise(at(m, lda)), b = noise(at(k, n), 2 / std::sqrt(static_cast<float>(k)));
    const Values bias = noise(at(n)), add = noise(at(m, ldc));
    Values packed(kernels.packed_size(half ? (k + 1) / 2 : k, n));
    (half ? kernels.pack_bf16 : kernels.pack)(b.data(), n, 1, k, n, packed.data());
    if (half) {
        std::transform(a.begin(), a.end(), a.begin(), to_bf16);
        std::transform(b.begin(), b.end(), b.begin(), to_bf16);
    }
    for (const int way : {0, 1, 2}) {  // alone, with everything, in place
        Truth truth(at(m, ldc), NAN);
        Values c(truth.size(), kUntouched);
        for (int row = begin; row < m; ++row)
            for (int column = 0; column < n; ++column) {
                double sum = way ? bias[at(column)] : 0;
                for (int i = 0; i < k; ++i)
                    sum += static_cast<double>(a[at(row, lda) + at(i)]) * b[at(i, n) + at(column)];
                const std::size_t place = at(row, ldc) + at(column);
                truth[place] = way ? 0.5 * sum + add[place] : sum;
                if (way == 2) c[place] = add[place];
            }
        Product product{};
        product.a = a.data(), product.lda = lda, product.b = packed.data(), product.c = c.data(), product.ldc = ldc;
        product.k = k, product.n = n, product.factor = 1, product.bf16 = half;
        if (way) product.bias = bias.data(), product.factor = 0.5F, product.add = way == 2 ? c.data() : add.data();
        kernels.multiply(product, begin, m);
        same(std::string(kernels.name) + " multiply" + sizes({m, k, n, half, way}), c, truth);
    }
}

// value gelu(gate); b as torch keeps it, [n, k].
void gated_products(const Kernels& kernels, int m, int k, int n, bool half) {
    const float size = 2 / std::sqrt(static_cast<float>(k));
    Values a = noise(at(m, k)), value = noise(at(n, k), size), gate = noise(at(n, k), size);
    const Values bias = noise(at(2 * n));
    const int whole = (n + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
    Values packed(kernels.packed_size(half ? (k + 1) / 2 : k, 2 * whole));
    (half ? kernels.pack_gated_bf16 : kernels.pack_gated)(value.data(), gate.data(), 1, k, k, n, packed.data());
    if (half)
        for (Values* values : {&a, &value, &gate})
            std::transform(values->begin(), values->end(), values->begin(), to_bf16);
    Truth truth(at(m + 1, n), NAN);
    Values c(truth.size(), kUntouched);
    for (int row = 0; row < m; ++row)
        for (int column = 0; column < n; ++column) {
            double left = bias[at(column)], right = bias[at(n + column)];
            for (int i = 0; i < k; ++i) {
                left += static_cast<double>(a[at(row, k) + at(i)]) * value[at(column, k) + at(i)];
                right += static_cast<double>(a[at(row, k) + at(i)]) * gate[at(column, k) + at(i)];
            }
            truth[at(row, n) + at(column)] = left * gelu(right);
        }
    Product product{};
    product.a = a.data(), product.lda = k, product.b = packed.data(), product.bias = bias.data(), product.c = c.data();
    product.ldc = n, product.k = k, product.n = n, product.factor = 1, product.gated = true, product.bf16 = half;
    kernels.multiply(product, 0, m);
    same(std::string(kernels.name) + " gated multiply" + sizes({m, k, n, half}), c, truth);
}

struct Layer {
    int images, high, wide, inputs, out_high, out_wide, outputs, stride;
    bool winograd, normed;  // normed: with silu and something to add
};

Truth convolved(const Layer& layer, const Values& x, const Values& scale, const Values& shift, const Values& weight,
                const Values& bias, const Values& add) {
    const int seen_high = layer.stride == 1 ? layer.out_high : layer.high;
    const int seen_wide = layer.stride == 1 ? layer.out_wide : layer.wide;
    const auto read = [&](int image, int row, int cell, int channel) {
        if (row < 0 || row >= seen_high || cell < 0 || cell >= seen_wide) return 0.0;
        const int y = row * layer.high / seen_high, z = cell * layer.wide / seen_wide;
        const double value = x[at((image * layer.high + y) * layer.wide + z, layer.inputs) + at(channel)];
        if (!layer.normed) return value;
        const std::size_t place = at(image / 2, layer.inputs) + at(channel);
        return silu(value * scale[place] + shift[place]);
    };
    Truth y(at(layer.images * layer.out_high * layer.out_wide, layer.outputs));
    Truth patch(at(9 * layer.inputs));
    for (std::size_t place = 0, cell = 0; place < y.size(); ++cell) {
        const int at_wide = static_cast<int>(cell) % layer.out_wide, rows = static_cast<int>(cell) / layer.out_wide;
        for (int i = 0; i < layer.inputs; ++i)
            for (int tap = 0; tap < 9; ++tap)
                patch[at(9 * i + tap)] = read(rows / layer.out_high, rows % layer.out_high * layer.stride + tap / 3 - 1,
                                              at_wide * layer.stride + tap % 3 - 1, i);
        for (int o = 0; o < layer.outputs; ++o, ++place) {
            y[place] = bias[at(o)] + (layer.normed ? add[place] : 0);
            for (std::size_t i = 0; i < patch.size(); ++i) y[place] += patch[i] * weight[at(o) * patch.size() + i];
        }
    }
    return y;
}

void convolutions(const Layer& layer) {
    const Values x = noise(at(layer.images * layer.high * layer.wide, layer.inputs));
    const Values weight = noise(at(9 * layer.inputs, layer.outputs), 1 / std::sqrt(static_cast<float>(layer.inputs)));
    const Values bias = noise(at(layer.outputs)), scale = noise(at(layer.images / 2, layer.inputs));
    const Values shift = noise(scale.size());
    const Values add = noise(at(layer.images * layer.out_high * layer.out_wide, layer.outputs));
    Truth truth = convolved(layer, x, scale, shift, weight, bias, add);
    truth.resize(truth.size() + 64, NAN);
    for (const Kernels* kernels : runnable_kernels()) {
        Values packed(kernels->convolution_size(layer.inputs, layer.outputs, layer.winograd));
        Values y(truth.size(), kUntouched);
        for (int begin = 0; begin < layer.outputs; begin += 2 * kernels->lanes)
            kernels->pack_convolution(weight.data() + static_cast<std::size_t>(begin * layer.inputs * 9), begin,
                                      std::min(2 * kernels->lanes, layer.outputs - begin), layer.inputs, layer.outputs,
                                      layer.winograd, packed.data());
        Convolution work{};
        work.x = x.data(), work.images = layer.images, work.high = layer.high, work.wide = layer.wide;
        work.inputs = layer.inputs, work.out_high = layer.out_high, work.out_wide = layer.out_wide;
        work.outputs = layer.outputs, work.stride = layer.stride, work.frames = 2, work.silu = layer.normed;
        work.weights = packed.data(), work.winograd = layer.winograd, work.bias = bias.data(), work.y = y.data();
        if (layer.normed) work.scale = scale.data(), work.shift = shift.data(), work.add = add.data();
        Values first;
        for (const int threads : {1, 3, 7, 40}) {
            const Units units = kernels->convolution_units(work, threads);
            std::fill(y.begin(), y.end(), kUntouched);
            for (int unit = 0; unit < units.count(); ++unit) {
                Values own(kernels->convolution_scratch(work, units));
                kernels->convolve(work, unit, units, own.data());
            }
            same(std::string(kernels->name) + " convolve for " + std::to_string(threads) +
                     sizes({layer.high, layer.wide, layer.inputs, layer.out_high, layer.out_wide, layer.outputs,
                            layer.stride, layer.winograd, layer.normed}),
                 y, truth);
            if (first.empty()) first = y;
            // The same bits. Under sanitizers compilers join products and sums in some tiles and not in others.
            CLAIM(SANITIZED || std::memcmp(first.data(), y.data(), y.size() * sizeof(float)) == 0);
        }
    }
}

void norms(const Kernels& kernels, int rows, int width) {
    const std::string shape = sizes({rows, width});
    const Values x = noise(at(rows, width), 3), weight = noise(at(width)), bias = noise(at(width));
    Truth normed(at(rows, width)), scaled(normed), mean(at(width)), squares(at(width));
    for (int row = 0; row < rows; ++row) {
        double middle = 0, variance = 0;
        const float* own = x.data() + at(row, width);
        for (int i = 0; i < width; ++i) middle += own[i] / static_cast<double>(width);
        for (int i = 0; i < width; ++i) variance += (own[i] - middle) * (own[i] - middle) / width;
        for (int i = 0; i < width; ++i) {
            normed[at(row, width) + at(i)] =
                (own[i] - middle) / std::sqrt(variance + 1e-5) * weight[at(i)] + bias[at(i)];
            scaled[at(row, width) + at(i)] = static_cast<double>(own[i]) * weight[at(i)] + bias[at(i)];
        }
    }
    for (int i = 0; i < width; ++i) {
        for (int row = 0; row < rows; ++row) mean[at(i)] += x[at(row, width) + at(i)] / static_cast<double>(rows);
        for (int row = 0; row < rows; ++row) squares[at(i)] += std::pow(x[at(row, width) + at(i)] - mean[at(i)], 2);
    }
    for (Truth* truth : {&normed, &scaled, &mean, &squares}) truth->resize(truth->size() + 64, NAN);
    Values out(normed.size(), kUntouched), other(squares.size(), kUntouched);
    kernels.layer_norm(x.data(), rows, width, weight.data(), bias.data(), 1e-5F, out.data());
    same(std::string(kernels.name) + " layer_norm" + shape, out, normed);
    kernels.scale_shift(x.data(), rows, width, weight.data(), bias.data(), out.data());
    same(std::string(kernels.name) + " scale_shift" + shape, out, scaled);
    out.assign(mean.size(), kUntouched);
    kernels.moments(x.data(), rows, width, out.data(), other.data());
    same(std::string(kernels.name) + " moments, means" + shape, out, mean);
    same(std::string(kernels.name) + " moments, squares" + shape, other, squares);
}

// softmax(q k^T / sqrt(d)) v of one row; keys and values `step` numbers apart.
void attended(const float* q, const float* k, const float* v, std::size_t step, int keys, int width, double* out) {
    Truth shares(at(keys));
    double most = -INFINITY, total = 0;
    for (int key = 0; key < keys; ++key) {
        for (int i = 0; i < width; ++i) shares[at(key)] += static_cast<double>(q[i]) * k[at(key) * step + at(i)];
        most = std::max(most, shares[at(key)] /= std::sqrt(static_cast<double>(width)));
    }
    for (double& share : shares) total += share = std::exp(share - most);
    for (int i = 0; i < width; ++i) {
        out[i] = 0;
        for (int key = 0; key < keys; ++key) out[i] += shares[at(key)] / total * v[at(key) * step + at(i)];
    }
}

// Two heads of rows 1..count; q, k and v in wider rows than their own.
void attentions(const Kernels& kernels, int count, int keys, int width) {
    const int heads = 2, ldq = heads * width + 3, ldk = 2 * heads * width, ldo = heads * width + 1;
    const Values q = noise(at(count, ldq), 4), rows = noise(at(keys, ldk));
    const float *k = rows.data(), *v = k + heads * width;
    Truth truth(at(count, ldo) + 64, NAN);
    Values out(truth.size(), kUntouched);
    const Attention attention{q.data(), k, v, out.data(), ldq, ldk, ldo, keys, heads, width};
    const int begin = count > 1;
    for (int head = 0; head < heads; ++head) {
        for (int row = begin; row < count; ++row)
            attended(q.data() + at(row, ldq) + at(head, width), k + at(head, width), v + at(head, width), at(ldk), keys,
                     width, truth.data() + at(row, ldo) + at(head, width));
        Values packed(kernels.packed_head_size(keys, width)), scratch(kernels.attend_scratch(keys, width));
        kernels.pack_head(attention, head, packed.data());
        kernels.attend(attention, head, packed.data(), begin, count, scratch.data());
    }
    same(std::string(kernels.name) + " attend" + sizes({count, keys, width}), out, truth);
}

// Two heads of places 1..places; what is seen goes where q was, as in the network.
void attentions_over_time(const Kernels& kernels, int frames, int places, int width) {
    const int heads = 2, row = 3 * heads * width, begin = places > 1;
    const std::size_t frame = at(places, row);
    Values rows = noise(at(frames) * frame, 2);
    Truth truth(rows.begin(), rows.end());
    for (int f = 0; f < frames; ++f)
        for (int place = begin; place < places; ++place)
            for (int head = 0; head < heads; ++head) {
                const std::size_t own = at(place, row) + at(head, width);
                const float *k = rows.data() + own + at(heads * width), *v = k + heads * width;
                attended(rows.data() + at(f) * frame + own, k, v, frame, frames, width,
                         truth.data() + at(f) * frame + own);
            }
    float *q = rows.data(), *k = q + heads * width, *v = k + heads * width;
    const Attention attention{q, k, v, q, row, row, row, frames, heads, width};
    Values scratch(kernels.temporal_scratch(frames, width));
    const auto stride = static_cast<std::ptrdiff_t>(frame);
    kernels.attend_temporal(attention, stride, stride, begin, places, scratch.data());
    same(std::string(kernels.name) + " attend_temporal" + sizes({frames, places, width}), rows, truth);
}

}  // namespace

int main() {
    for (const Kernels* kernels : runnable_kernels()) {
        std::printf("%s\n", kernels->name);
        for (const int m : {1, 13, 101})
            for (const int k : {1, 17, 64})
                for (const int n : {1, 15, 16, 33, 100})
                    for (const bool half : {false, true}) {
                        if (half && !kernels->pack_bf16) continue;
                        products(*kernels, m, k, n, half);
                        gated_products(*kernels, m, k, n, half);
                    }
        products(*kernels, 101, 5121, 17, kernels->pack_bf16 != nullptr);  // rounded by fewer rows at a time
        for (const int rows : {1, 2, 5, 33, 600})
            for (const int width : {1, 3, 16, 37, 320}) norms(*kernels, rows, width);
        for (const int keys : {1, 5, 77, 130, 300})
            for (const int width : {1, 3, 40})
                for (const int count : {1, 7, 50}) attentions(*kernels, count, keys, width);
        for (const int frames : {1, 3, 17, 34})
            for (const int width : {1, 3, 40})
                for (const int places : {1, 7, 19}) attentions_over_time(*kernels, frames, places, width);
    }
    for (const bool normed : {false, true})
        for (const auto& [inputs, outputs] : {std::pair{3, 4}, {4, 20}, {20, 3}, {64, 100}, {100, 64}})
            for (const auto& [high, wide] : {std::pair{1, 1}, {5, 7}, {9, 4}}) {
                if (normed && inputs > 20 && high != 5) continue;  // the larger ones once each
                for (const bool winograd : {false, true}) {
                    convolutions({2, high, wide, inputs, high, wide, outputs, 1, winograd, normed});
                    convolutions({2, high, wide, inputs, 2 * high, 2 * wide - 1, outputs, 1, winograd, normed});
                }
                convolutions({4, high, wide, inputs, (high + 1) / 2, (wide + 1) / 2, outputs, 2, false, normed});
            }
    // So many inputs that a direct convolution is nine products.
    convolutions({2, 3, 5, 912, 3, 5, 20, 1, false, true});
    convolutions({2, 3, 5, 912, 2, 3, 20, 2, false, true});
    return failures;
}
