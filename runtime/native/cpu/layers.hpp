// A graph's layers as a bundle keeps them (export/layers.py): numbers, and tensors by their names in the network.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.hpp"

namespace posecrafter::cpu {

/* What cannot be read or is not supported: one line. */
struct LayersError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/* A file mapped for reading. */
class Mapped {
  public:
    explicit Mapped(const std::string& path);  // throws LayersError
    Mapped(Mapped&& other) noexcept;
    Mapped& operator=(Mapped&&) = delete;
    ~Mapped();
    const char* data() const { return data_; }
    std::size_t size() const { return size_; }

  private:
    const char* data_ = nullptr;
    std::size_t size_ = 0;
};

/* Numbers in the order of `sizes`; a matrix of two dimensions may lie transposed. */
struct Tensor {
    std::vector<int> sizes;
    const void* data;
    bool half, transposed;
    std::string input = {};  // where it is a person's: what the graph calls it; data is nullptr until it is given

    std::size_t count() const;
    /* `count` numbers from `first` on as they lie, to float32. */
    void read(std::size_t first, std::size_t count, float* out) const;
    /* Rows [begin, begin + count), of the first of `sizes`, to float32 in the order of `sizes`. */
    void rows(int begin, int count, float* out) const;
    /* All of them. */
    Floats floats() const;
};

/* One of a person's weights as it is given: of float32, or half of it; of any alignment. */
struct Weight {
    std::string input;
    std::vector<int> sizes;
    const void* data;
    bool half;
};

/* What kernels read of a layer. */
struct Weights {
    Floats packed, bias;
};

/* Tensors by name. Of a shared bundle some are a person's, and a graph is made with his: `with`. Copies share what was
 * packed. */
class Layers {
  public:
    /* <stem>.layers and the files that it names. Throws LayersError. */
    explicit Layers(const std::string& stem);

    /* Whether some are a person's. */
    bool shared() const;
    /* What is a person's, by its names and sizes, without data. */
    std::vector<Weight> persons() const;
    /* These layers with a person's weights, which are read until it goes; those that they do not know are left out.
     * Throws LayersError where one is missing or another than the layers say. */
    Layers with(const std::vector<Weight>& weights) const;
    /* What `pack` makes of the layers <names>.weight and .bias: anew where one is a person's, else once for everybody.
     */
    std::shared_ptr<const Weights> weights(const std::vector<std::string>& names,
                                           const std::function<Weights()>& pack) const;

    const std::string& graph() const { return graph_; }
    double number(const std::string& name) const;  // throws LayersError
    int whole(const std::string& name) const;      // throws LayersError
    bool has(const std::string& name) const { return tensors_.contains(name); }
    /* Throws LayersError where there is none of that name. */
    const Tensor& tensor(const std::string& name) const;

  private:
    void read_line(const std::string& line, const std::string& folder);
    std::optional<Tensor> read_tensor(std::istream& words, const std::string& folder);
    std::optional<Tensor> read_input(std::istream& words) const;

    std::string path_, graph_;
    std::map<std::string, double> numbers_;
    std::map<std::string, Tensor> tensors_;
    std::map<std::string, std::shared_ptr<const Mapped>> files_;
    std::shared_ptr<std::map<std::string, std::shared_ptr<const Weights>>> packed_;
    std::size_t start_ = 0;
};

}  // namespace posecrafter::cpu
