// The video network's two blocks (finetune/layers.py says what they compute), by rows that stay in a core's cache.
#pragma once

#include <optional>
#include <vector>

#include "ops.hpp"

namespace posecrafter::cpu {

/* How the image axis is made up: `prompts` times `frames` once split, `frames` alone before. */
struct Fold {
    int prompts, frames;
    bool split = false;
    int outer() const { return split ? prompts : 1; }
    Fold done() const { return {prompts, frames, true}; }
};

/* A pass's time embedding behind SiLU, [E]; none for the autoencoder. */
struct Time {
    const float* data = nullptr;
    int width = 0;
};

class ResBlock {
  public:
    /* timed: with a time embedding; without, the autoencoder's. */
    ResBlock(Machine& machine, const Layers& layers, const std::string& name, int groups, float eps, bool timed);
    /* x [images, h, w, C] -> [images, h, w, C']. frames: of a norm. */
    Images run(Machine& machine, const Images& x, Time time, int frames) const;

  private:
    GroupNorm norm1_, norm2_;
    Convolution3x3 conv1_, conv2_;
    Linear time_;
    std::optional<Linear> shortcut_;
};

/* Text of the prompts, [B tokens, D]. */
struct Text {
    const float* data;
    int prompts, tokens, width;
};

class TransformerBlock {
  public:
    TransformerBlock(Machine& machine, const Layers& layers, const std::string& name, int heads);
    /* x [F or B*F, h, w, C], overwritten -> [B*F, h, w, C]. */
    Images run(Machine& machine, Images x, const Text& text, Fold fold) const;

  private:
    struct Keys;  // packed keys and values of every head, of the key frames or of the texts
    Keys pack(Machine& machine, const float* rows, int contexts, int count) const;
    Keys key_frames(Machine& machine, const Images& x, Fold fold) const;
    Keys texts(Machine& machine, const Text& text) const;
    void see_key_frame(Machine& machine, const Images& x, Fold fold, float* across) const;
    void see_frames(Machine& machine, float* across, int cells, Fold fold) const;
    Images see_text(Machine& machine, Images x, const float* across, const Text& text, Fold fold) const;
    void attend(Machine& machine, const Keys& keys, int context, const float* q, std::ptrdiff_t ldq, int rows,
                float* out, float* scratch) const;

    int width_, heads_;
    bool temporal_;
    LayerNorm norm1_, norm2_, norm3_;
    Linear query_, of_key_, out_, of_time_, temporal_out_, text_q_, of_text_, text_out_, hidden_, ff_out_;
};

class Transformer {
  public:
    Transformer(Machine& machine, const Layers& layers, const std::string& name, int heads, int depth, int groups,
                float eps);
    /* x [F or B*F, h, w, C] -> [B*F, h, w, C]. */
    Images run(Machine& machine, const Images& x, const Text& text, Fold fold) const;

  private:
    GroupNorm norm_;
    Linear proj_in_, proj_out_;
    std::vector<TransformerBlock> blocks_;
};

}  // namespace posecrafter::cpu
