// What the CPU engine's kernels reach on one core of this machine, a JSON line each. cpu_kernels.py runs it.
//
// Sizes are the pocket base's at 128x128 with 17 frames and two prompts, and those of Stable Diffusion 1.5 at 512x512.
// GFLOP/s of a convolution count a direct one's operations, so that Winograd's form shows what it saves.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace {

using namespace posecrafter::cpu;
using Numbers = std::vector<float>;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Numbers noise(std::size_t count) {
    static unsigned state = 1;
    Numbers numbers(count);
    for (float& number : numbers)
        number = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 16777216 - 0.5f;
    return numbers;
}

// The best of at least ten runs and half a second.
void time(const Kernels& k, const std::string& kernel, const std::string& shape, double gflop,
          const std::function<void()>& run) {
    double best = 1e9;
    int runs = 0;
    for (const double start = now(); runs < 10 || now() - start < 0.5; ++runs) {
        const double before = now();
        run();
        best = std::min(best, now() - before);
    }
    std::printf(
        "{\"kernels\": \"%s\", \"kernel\": \"%s\", \"shape\": \"%s\", \"ms\": %.4f, \"gflop_per_second\": %.1f, "
        "\"runs\": %d}\n",
        k.name, kernel.c_str(), shape.c_str(), best * 1e3, gflop / best, runs);
    std::fflush(stdout);
}

void product(const Kernels& k, int rows, int depth, int columns, bool bf16) {
    const std::size_t m = rows, d = depth, n = columns;
    const Numbers a = noise(m * d), b = noise(d * n);
    Numbers c(m * n), packed(k.packed_size(depth, columns));
    (bf16 ? k.pack_bf16 : k.pack)(b.data(), 1, depth, depth, columns, packed.data());
    const Product work{.a = a.data(),
                       .lda = depth,
                       .b = packed.data(),
                       .bias = nullptr,
                       .add = nullptr,
                       .c = c.data(),
                       .ldc = columns,
                       .k = depth,
                       .n = columns,
                       .bf16 = bf16};
    time(k, bf16 ? "product bf16" : "product",
         std::to_string(rows) + " x " + std::to_string(depth) + " x " + std::to_string(columns), 2e-9 * rows * d * n,
         [&] { k.multiply(work, 0, rows); });
}

void convolution(const Kernels& k, int images, int side, int inputs, int outputs, bool winograd) {
    const std::size_t cells = static_cast<std::size_t>(images) * side * side;
    const Numbers x = noise(cells * inputs), weight = noise(static_cast<std::size_t>(outputs) * inputs * 9),
                  affine = noise(inputs), bias = noise(outputs);
    Numbers y(cells * outputs), packed(k.convolution_size(inputs, outputs, winograd));
    const int panel = 2 * k.lanes;
    for (int begin = 0; begin < outputs; begin += panel)
        k.pack_convolution(weight.data() + static_cast<std::size_t>(begin) * inputs * 9, begin,
                           std::min(panel, outputs - begin), inputs, outputs, winograd, packed.data());
    const Convolution work{.x = x.data(),
                           .images = images,
                           .high = side,
                           .wide = side,
                           .inputs = inputs,
                           .out_high = side,
                           .out_wide = side,
                           .outputs = outputs,
                           .stride = 1,
                           .scale = affine.data(),
                           .shift = affine.data(),
                           .frames = images,
                           .silu = true,
                           .weights = packed.data(),
                           .winograd = winograd,
                           .bias = bias.data(),
                           .add = nullptr,
                           .y = y.data()};
    const Units units = k.convolution_units(work, 1);
    Numbers scratch(k.convolution_scratch(work, units));
    time(k, winograd ? "convolution winograd" : "convolution direct",
         std::to_string(images) + " x " + std::to_string(side) + "x" + std::to_string(side) + ", " +
             std::to_string(inputs) + " to " + std::to_string(outputs),
         18e-9 * static_cast<double>(cells) * inputs * outputs, [&] {
             for (int unit = 0; unit < units.count(); ++unit) k.convolve(work, unit, units, scratch.data());
         });
}

void attention(const Kernels& k, int rows, int keys, int width) {
    const std::size_t d = width;
    const Numbers q = noise(rows * d), kv = noise(2 * keys * d);
    Numbers out(rows * d), packed(k.packed_head_size(keys, width)), scratch(k.attend_scratch(keys, width));
    const Attention work{q.data(), kv.data(), kv.data() + width, out.data(), width, 2 * width, width, keys, 1, width};
    k.pack_head(work, 0, packed.data());
    time(k, "attention", std::to_string(rows) + " rows, " + std::to_string(keys) + " keys of " + std::to_string(width),
         4e-9 * rows * keys * width, [&] { k.attend(work, 0, packed.data(), 0, rows, scratch.data()); });
}

void temporal(const Kernels& k, int frames, int places, int heads, int width) {
    const int row = 3 * heads * width;
    Numbers rows = noise(static_cast<std::size_t>(frames) * places * row), scratch(k.temporal_scratch(frames, width));
    Numbers out(static_cast<std::size_t>(frames) * places * heads * width);
    const Attention work{rows.data(),
                         rows.data() + heads * width,
                         rows.data() + 2 * heads * width,
                         out.data(),
                         row,
                         row,
                         heads * width,
                         frames,
                         heads,
                         width};
    time(k, "temporal attention",
         std::to_string(frames) + " frames, " + std::to_string(places) + " places, " + std::to_string(heads) +
             " heads of " + std::to_string(width),
         4e-9 * frames * frames * places * heads * width, [&] {
             k.attend_temporal(work, static_cast<std::ptrdiff_t>(places) * row,
                               static_cast<std::ptrdiff_t>(places) * heads * width, 0, places, scratch.data());
         });
}

}  // namespace

int main() {
    for (const Kernels* k : runnable_kernels()) {
        for (const auto& [rows, depth, columns] :
             {std::array{96, 64, 256}, {96, 128, 512}, {96, 512, 128}, {96, 1280, 320}}) {
            product(*k, rows, depth, columns, false);
            if (k->pack_bf16) product(*k, rows, depth, columns, true);
        }
        for (const bool winograd : {true, false}) {
            convolution(*k, 34, 16, 64, 64, winograd);
            convolution(*k, 34, 8, 128, 128, winograd);
            convolution(*k, 2, 64, 320, 320, winograd);
        }
        attention(*k, 8704, 256, 16);
        attention(*k, 2176, 64, 32);
        attention(*k, 8192, 4096, 40);
        attention(*k, 8192, 77, 40);
        temporal(*k, 17, 256, 4, 16);
        temporal(*k, 17, 64, 4, 32);
    }
}
