// What a pass takes on this engine, from its own graphs: they are made and run on a machine that only counts.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "graphs.hpp"

namespace posecrafter::cpu {

/* A pass of `frames`, the reference among them, sampled with `prompts` of `tokens` and decoded `chunk` frames at a
 * time: images [height, width], a latent cell `factor` pixels. */
struct Pass {
    int frames, prompts, chunk, height, width, factor, tokens;
};

class Estimate {
  public:
    /* folder: the bundle's graphs/. Of a shared bundle, one person is counted. Throws LayersError. */
    Estimate(const std::string& folder, int threads, bool bf16);
    /* Bytes at the highest: packed weights, and the largest graph's run with what its caller holds meanwhile; not the
     * rendered video. Throws LayersError for sizes that no run takes. */
    std::size_t bytes(const Pass& pass) const;

  private:
    struct Run {
        std::vector<Made> made;
        std::size_t blocks, scratch;  // floats
    };
    std::unique_ptr<Graph> count(const Layers& layers);
    Run run(Graph& graph, const std::vector<Given>& given) const;

    int threads_;
    bool bf16_;
    int channels_, text_width_;
    std::size_t weights_ = 0, scratch_ = 0;  // floats
    std::unique_ptr<Graph> pose_encoder_, denoiser_, decoder_;
};

}  // namespace posecrafter::cpu
