// A graph's layers as a bundle keeps them (export/layers.py): numbers, and tensors by their names in the network.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
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

/* float32 in the order of `sizes`; a matrix of two dimensions may lie transposed. */
struct Tensor {
    std::vector<int> sizes;
    const void* data;
    bool half, transposed;

    std::size_t count() const;
    /* A copy in float32, in the order of `sizes`. */
    Floats floats() const;
};

class Layers {
  public:
    /* <stem>.layers and the files that it names. Throws LayersError. */
    explicit Layers(const std::string& stem);

    const std::string& graph() const { return graph_; }
    double number(const std::string& name) const;  // throws LayersError
    int whole(const std::string& name) const;      // throws LayersError
    bool has(const std::string& name) const { return tensors_.contains(name); }
    /* Throws LayersError where there is none of that name. */
    const Tensor& tensor(const std::string& name) const;

  private:
    void read_line(const std::string& line, const std::string& folder);
    std::optional<Tensor> read_tensor(std::istream& words, const std::string& folder);

    std::string path_, graph_;
    std::map<std::string, double> numbers_;
    std::map<std::string, Tensor> tensors_;
    std::map<std::string, Mapped> files_;
    std::size_t start_ = 0;
};

}  // namespace posecrafter::cpu
