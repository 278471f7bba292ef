// The four graphs of a bundle, from their layers. Borders are those of the bundle's ONNX: planar images, float32.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "layers.hpp"
#include "ops.hpp"

namespace posecrafter::cpu {

/* What crosses a border: float32 or int64 numbers, not owned. */
struct Given {
    std::vector<int> sizes;
    const void* data;
    bool whole;  // int64
    const float* floats() const { return static_cast<const float*>(data); }
    const std::int64_t* integers() const { return static_cast<const std::int64_t*>(data); }
};

struct Made {
    std::string name;
    std::vector<int> sizes;
    std::shared_ptr<float[]> data;
    std::size_t count() const;
};

/* One graph; of a shared bundle, one with a person's weights. Runs from one thread at a time. */
class Graph {
  public:
    virtual ~Graph() = default;
    /* Inputs in the order of `inputs_of`; throws LayersError for sizes that do not belong together. */
    virtual std::vector<Made> run(Machine& machine, const std::vector<Given>& given) = 0;
};

std::unique_ptr<Graph> make_denoiser(Machine& machine, const Layers& layers);
std::unique_ptr<Graph> make_decoder(Machine& machine, const Layers& layers);
std::unique_ptr<Graph> make_pose_encoder(Machine& machine, const Layers& layers);
std::unique_ptr<Graph> make_text_encoder(Machine& machine, const Layers& layers);

/* By the name that the layers give themselves. Throws LayersError. */
std::unique_ptr<Graph> make_graph(Machine& machine, const Layers& layers);
const std::vector<std::string>& inputs_of(const Layers& layers);

/* More than any network has. */
constexpr int kMostLevels = 8;

/* Throws LayersError unless given's sizes are these, 0 stands for any, and its numbers of that kind. */
void check_sizes(const std::string& name, const Given& given, const std::vector<int>& sizes, bool whole = false);

/* Throws LayersError where the product of these sizes, a pass's cells, is more than an int counts. */
void check_cells(std::initializer_list<int> sizes);

/* How many images of so many pixels go together through a graph whose images know nothing of each other: few, so that
 * what one layer hands the next stays near the cores, but one for each thread. */
int together(const Machine& machine, int pixels);

/* Images [first, first + count) of planar ones. */
Given part(const Machine& machine, const Given& planar, int first, int count);

/* Planar [count, channels, h, w] -> channels-last, and back. */
Images from_planar(Machine& machine, const Given& planar);
void to_planar(const float* images, int count, int cells, int channels, float* planar);
/* With memory for as many numbers, unless the machine counts. */
Made made(const Machine& machine, std::string name, std::vector<int> sizes);

}  // namespace posecrafter::cpu
