// Layers with their packed weights, over images that are channels-last: how a kernel's work is shared out among
// threads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "layers.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace posecrafter::cpu {

/* [images, high, wide, channels]; tokens [images, high wide, channels] are the same. */
struct Images {
    Block block;
    int count = 0, high = 0, wide = 0, channels = 0;

    float* data() const { return block.data(); }
    int cells() const { return high * wide; }
    int rows() const { return count * cells(); }
    std::size_t size() const { return static_cast<std::size_t>(rows()) * static_cast<std::size_t>(channels); }
    float* image(int index) const {
        return data() + static_cast<std::size_t>(index * cells()) * static_cast<std::size_t>(channels);
    }
};

/* What every layer runs on. Used from one thread at a time.
 *
 * One that counts has no memory and does no task, so that graphs that are made and run on it tell what they would take
 * (estimate.cpp): whatever touches a block or weights is a task. */
class Machine {
  public:
    /* bf16: products of tokens round to it where they can. */
    Machine(int threads, bool bf16, bool counting = false);

    const Kernels& k;
    const int threads;
    const bool bf16, counting;
    Arena arena;

    Images images(int count, int high, int wide, int channels);
    /* Memory that stays: a graph's packed weights. */
    Floats keep(std::size_t count);
    /* body(index) for every index in 0..tasks, as `Threads::share` does. */
    template <class Body>
    void share(int tasks, const Body& body) {
        if (!counting) pool_.share(tasks, [&](int index, int) { body(index); });
    }
    /* body(index, scratch): so many floats of a thread's own; what they held is gone. */
    template <class Body>
    void share(int tasks, std::size_t floats, const Body& body) {
        most_scratch_ = most_scratch_ < floats ? floats : most_scratch_;
        if (!counting) pool_.share(tasks, [&](int index, int thread) { body(index, scratch(thread, floats)); });
    }
    /* In blocks of how many rows, at most `most` and whole tiles, to share out groups of rows: so many blocks that the
     * thread with most to do has little more than the others. */
    int block_of(int groups, int rows, int most, int tile) const;
    /* body(first row, row behind the last) for rows 0..rows in blocks, at most `most` rows each. */
    template <class Body>
    void by_rows(int rows, int most, const Body& body) {
        const int block = block_of(1, rows, most, kTile);
        share((rows + block - 1) / block, [&](int index) {
            const int begin = index * block;
            body(begin, begin + block < rows ? begin + block : rows);
        });
    }
    /* Floats that were kept, and the scratch of all threads. */
    std::size_t kept() const { return kept_; }
    std::size_t scratches() const { return most_scratch_ * static_cast<std::size_t>(threads); }

  private:
    static constexpr int kTile = 12;  // rows of products that are computed together, or twice as many
    struct Scratch {
        Floats data;
        std::size_t size = 0;
    };
    float* scratch(int thread, std::size_t count);

    Threads pool_;
    std::vector<Scratch> scratch_;
    std::size_t kept_ = 0, most_scratch_ = 0;
};

/* Throws LayersError unless a layer gets as many channels as it has weights for. */
void check_width(int found, int wanted);

/* y = x W^T + bias, from one torch Linear or 1x1 convolution, or several side by side. */
class Linear {
  public:
    Linear() = default;
    /* bf16: numbers are rounded to it, if the kernels multiply it. */
    Linear(Machine& machine, const Layers& layers, const std::vector<std::string>& names, bool bf16 = false);
    /* value gelu(gate), of two torch Linears. */
    static Linear gated(Machine& machine, const Layers& layers, const std::string& value, const std::string& gate,
                        bool bf16);

    int inputs() const { return inputs_; }
    int outputs() const { return outputs_; }
    Product product(const float* a, float* c) const;

  private:
    Linear(Machine& machine, const Layers& layers, const std::vector<std::string>& names, bool bf16, bool gated);
    Floats pack(Machine& machine, const std::vector<const Tensor*>& parts) const;

    std::shared_ptr<const Weights> weights_;
    int inputs_ = 0, outputs_ = 0;
    bool bf16_ = false, gated_ = false;
};

/* A norm's weight and bias. */
struct Affine {
    Affine() = default;
    Affine(const Layers& layers, const std::string& name);
    const float* weight() const { return weights->packed.get(); }
    const float* bias() const { return weights->bias.get(); }

    std::shared_ptr<const Weights> weights;
    int channels = 0;
};

class LayerNorm {
  public:
    LayerNorm(const Layers& layers, const std::string& name, float eps = 1e-5f) : affine_(layers, name), eps_(eps) {}
    int channels() const { return affine_.channels; }
    float eps() const { return eps_; }
    /* x [count, C] -> out [count, C]. */
    void rows(const Machine& machine, const float* x, int count, float* out) const {
        machine.k.layer_norm(x, count, affine_.channels, affine_.weight(), affine_.bias(), eps_, out);
    }

  private:
    Affine affine_;
    float eps_;
};

/* Scale and shift that norm groups of channels, [clips, channels] each. */
struct Scaling {
    Block scale, shift;
    int frames = 1;  // images of a clip
};

class GroupNorm {
  public:
    GroupNorm() = default;
    GroupNorm(const Layers& layers, const std::string& name, int groups, float eps);
    /* Statistics over `frames` images together. */
    Scaling scaling(Machine& machine, const Images& x, int frames) const;

  private:
    Affine affine_;
    int groups_ = 1;
    float eps_ = 0;
};

/* How a convolution reads its input: as it is, or normed, and activated. */
struct Reading {
    const Scaling* norm = nullptr;
    bool silu = false;
};

class Convolution3x3 {
  public:
    Convolution3x3() = default;
    /* A convolution behind doubling may lie in the bundle as the transposed one that does both. */
    Convolution3x3(Machine& machine, const Layers& layers, const std::string& name, int stride = 1);

    int outputs() const { return outputs_; }
    /* With stride 1 to [high, wide], x resized to it; bias: other than the layer's; add: of the output's shape. */
    Images run(Machine& machine, const Images& x, Reading reading, int high, int wide, const float* bias = nullptr,
               const float* add = nullptr) const;
    Images run(Machine& machine, const Images& x, Reading reading = {}, const float* bias = nullptr,
               const float* add = nullptr) const;
    const float* bias() const { return weights_->bias.get(); }

  private:
    Floats pack(Machine& machine, const Tensor& weight) const;

    std::shared_ptr<const Weights> weights_;
    int inputs_ = 0, outputs_ = 0, stride_ = 1;
    bool winograd_ = false;
};

/* c = a W^T + bias over all rows of x, and `add`, of c's shape. */
Images multiply(Machine& machine, const Linear& layer, const Images& x, const float* add = nullptr);

}  // namespace posecrafter::cpu
