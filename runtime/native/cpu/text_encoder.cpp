// Token ids to CLIP's last hidden state. A prompt is encoded once a request: plain loops where no kernel fits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "graphs.hpp"

namespace posecrafter::cpu {

namespace {

struct Layer {
    Layer(Machine& machine, const Layers& layers, const std::string& name, float eps)
        : norm1(layers, name + ".layer_norm1", eps),
          norm2(layers, name + ".layer_norm2", eps),
          projected(machine, layers,
                    {name + ".self_attn.q_proj", name + ".self_attn.k_proj", name + ".self_attn.v_proj"}),
          out(machine, layers, {name + ".self_attn.out_proj"}),
          hidden(machine, layers, {name + ".mlp.fc1"}),
          back(machine, layers, {name + ".mlp.fc2"}) {
        const int width = out.outputs();
        if (norm1.channels() != width || norm2.channels() != width || out.inputs() != width ||
            projected.inputs() != width || projected.outputs() != 3 * width || hidden.inputs() != width ||
            back.inputs() != hidden.outputs() || back.outputs() != width)
            throw LayersError(name + " has widths that do not belong together; export the bundle again");
    }
    LayerNorm norm1, norm2;
    Linear projected, out, hidden, back;
};

class TextEncoder : public Graph {
  public:
    TextEncoder(Machine& machine, const Layers& layers)
        : heads_(layers.whole("heads")),
          width_(layers.whole("width")),
          tokens_(layers.whole("tokens")),
          vocabulary_(layers.whole("vocabulary")),
          quick_(layers.number("quick_gelu") != 0),
          words_(layers.tensor("embeddings.token_embedding.weight").floats()),
          places_(layers.tensor("embeddings.position_embedding.weight").floats()),
          last_(layers, "final_layer_norm", static_cast<float>(layers.number("eps"))) {
        check_table(layers, "embeddings.token_embedding.weight", vocabulary_);
        check_table(layers, "embeddings.position_embedding.weight", tokens_);
        for (int index = 0; index < layers.whole("layers"); ++index)
            layers_.emplace_back(machine, layers, "encoder.layers." + std::to_string(index), last_.eps());
        for (const Layer& layer : layers_)
            if (layer.out.outputs() != width_ || last_.channels() != width_)
                throw LayersError("the text encoder's widths do not belong together; export the bundle again");
    }

    std::vector<Made> run(Machine& machine, const std::vector<Given>& given) override {
        check_sizes("input_ids", given[0], {0, tokens_}, true);
        const int prompts = given[0].sizes[0], rows = prompts * tokens_;
        Images x = machine.images(prompts, tokens_, 1, width_), normed = machine.images(prompts, tokens_, 1, width_);
        for (int row = 0; row < rows; ++row)
            embed(given[0].integers()[row], row % tokens_, x.data() + static_cast<std::size_t>(row) * width_);
        for (const Layer& layer : layers_) {
            layer.norm1.rows(machine, x.data(), rows, normed.data());
            const Images projected = multiply(machine, layer.projected, normed);
            machine.share(prompts * heads_, [&](int index) {
                attend(projected.image(index / heads_), index % heads_, normed.image(index / heads_));
            });
            x = multiply(machine, layer.out, normed, x.data());
            layer.norm2.rows(machine, x.data(), rows, normed.data());
            const Images hidden = multiply(machine, layer.hidden, normed);
            for (std::size_t i = 0; i < hidden.size(); ++i) hidden.data()[i] = activate(hidden.data()[i]);
            x = multiply(machine, layer.back, hidden, x.data());
        }
        std::vector<Made> outputs;
        outputs.push_back(made(machine, "text", {prompts, tokens_, width_}));
        last_.rows(machine, x.data(), rows, outputs[0].data.get());
        return outputs;
    }

  private:
    void check_table(const Layers& layers, const std::string& name, int rows) const {
        if (layers.tensor(name).sizes != std::vector{rows, width_} || heads_ < 1 || width_ % heads_ != 0)
            throw LayersError(name + " has another size than the numbers say; export the bundle again");
    }

    void embed(std::int64_t id, int place, float* out) const {
        if (id < 0 || id >= vocabulary_)
            throw LayersError("input_ids holds " + std::to_string(id) + "; there are " + std::to_string(vocabulary_) +
                              " tokens");
        for (int i = 0; i < width_; ++i)
            out[i] = words_[static_cast<std::size_t>(id) * width_ + i] +
                     places_[static_cast<std::size_t>(place) * width_ + i];
    }

    float activate(float x) const {
        return quick_ ? x / (1 + std::exp(-1.702f * x)) : 0.5f * x * (1 + std::erf(x * 0.70710678f));
    }

    /* One head of one prompt: a token sees itself and those before it. rows [tokens, q k v] -> out [tokens, C]. */
    void attend(const float* rows, int head, float* out) const {
        const int depth = width_ / heads_;
        const float factor = 1 / std::sqrt(static_cast<float>(depth));
        std::vector<float> share(static_cast<std::size_t>(tokens_));
        for (int row = 0; row < tokens_; ++row) {
            const float* q = rows + static_cast<std::size_t>(row) * 3 * width_ + head * depth;
            float most = -INFINITY, total = 0;
            for (int seen = 0; seen <= row; ++seen) {
                const float* key = rows + static_cast<std::size_t>(seen) * 3 * width_ + width_ + head * depth;
                float score = 0;
                for (int i = 0; i < depth; ++i) score += q[i] * key[i];
                share[static_cast<std::size_t>(seen)] = score * factor;
                most = std::max(most, score * factor);
            }
            float* to = out + static_cast<std::size_t>(row) * width_ + head * depth;
            std::memset(to, 0, sizeof(float) * static_cast<std::size_t>(depth));
            for (int seen = 0; seen <= row; ++seen) {
                const float weight = std::exp(share[static_cast<std::size_t>(seen)] - most);
                const float* value = rows + static_cast<std::size_t>(seen) * 3 * width_ + 2 * width_ + head * depth;
                total += weight;
                for (int i = 0; i < depth; ++i) to[i] += weight * value[i];
            }
            for (int i = 0; i < depth; ++i) to[i] /= total;
        }
    }

    int heads_, width_, tokens_, vocabulary_;
    bool quick_;
    Floats words_, places_;
    std::vector<Layer> layers_;
    LayerNorm last_;
};

}  // namespace

std::unique_ptr<Graph> make_text_encoder(Machine& machine, const Layers& layers) {
    return std::make_unique<TextEncoder>(machine, layers);
}

}  // namespace posecrafter::cpu
