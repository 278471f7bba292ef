// An engine's module, opened: handles that free themselves, failures that are exceptions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../engines/engine.h"
#include "manifest.hpp"

namespace posecrafter {

struct EngineOptions {
    std::string name = "auto";               // the first that opens of those that suit bundle and processor; "native",
                                             // "onnxruntime", "openvino", "tensorrt", or the path of a module
    std::string library, device, precision;  // empty: the engine's default
    int threads = 0;
};

// A tensor in the engine's own memory.
using Tensor = std::shared_ptr<void>;
// Inputs that a graph sees at every run: graph -> input -> tensor.
using Bound = std::map<std::string, std::map<std::string, Tensor, std::less<>>>;
// One of a person's weights, in the host's memory. type: a pc_engine_type.
struct Weight {
    int type;
    std::vector<std::int64_t> shape;
    const void* data;
};
using Inputs = std::initializer_list<std::pair<const char*, const Tensor*>>;

// Runs the graphs of one bundle. Used from one thread at a time. Tensors must not outlive it.
class Engine {
  public:
    // Throws Error "engine-unknown", "engine-missing", "engine-version", "engine-device", "engine-precision",
    // "engine-load".
    Engine(const EngineOptions& options, const std::filesystem::path& folder, const Manifest& manifest);
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    const char* name() const { return module_->name; }
    const char* device() const { return module_->device(engine_.get()); }

    // type: a pc_engine_type.
    Tensor upload(int type, const std::vector<std::int64_t>& shape, const void* data);
    Tensor upload(const std::vector<std::int64_t>& shape, const float* data);
    Tensor upload(std::int64_t value);
    // Takes a person's weights of a graph, by its inputs: what to bind for him, which is his weights one by one, or
    // what the engine packs them to; then the graph is loaded now. Throws Error "engine-load", "engine-memory".
    Bound::mapped_type take(const std::string& graph, const std::map<std::string, Weight>& weights);
    // Runs a graph, loaded at the first call, on those of the inputs, then of the bound ones, that it has.
    // Throws Error "engine-load", "engine-run".
    Tensor run(const std::string& graph, Inputs inputs, const Bound& bound, const char* output);
    void download(const Tensor& tensor, float* data, std::size_t count);
    // Bytes that a pass takes at its highest, of an engine that knows. Throws Error "engine-load".
    std::optional<std::uint64_t> memory(const pc_engine_pass& pass) const;

  private:
    using Handle = std::unique_ptr<void, void (*)(void*)>;

    void open(const std::string& name, const EngineOptions& options);
    // What "auto" tries, first to last.
    std::vector<std::string> automatic(const EngineOptions& options) const;
    bool has_layers() const { return listed_.count("graphs/denoiser.layers") != 0; }
    void* load(const std::string& graph);
    Tensor owned(void* tensor, const pc_engine_failure& failure);

    const pc_engine_module* module_ = nullptr;
    Handle engine_;
    std::map<std::string, Handle> graphs_;
    std::filesystem::path folder_;
    std::set<std::string> listed_;  // only what the manifest lists has been checked, so only that is loaded
};

}  // namespace posecrafter
