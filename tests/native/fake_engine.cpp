// An engine of a few lines, with the graphs of a bundle as plain arithmetic. Its device says what shall go wrong:
// "cpu" nothing, "nan" the latents, "run" a run, "load" a graph. A denoiser's file that reads "inputs A B" has the
// inputs A and B besides the usual ones, as a shared bundle's has a person's weights.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "engine.h"

namespace {

struct Tensor {
    std::vector<std::int64_t> shape;
    std::vector<float> values;
};
struct Engine {
    std::string device;
};
struct Graph {
    Engine* engine;
    std::string name;
    std::vector<std::string> inputs;
};
using Inputs = std::map<std::string, const Tensor*>;

std::atomic<int> uploads{0};

std::size_t size_of(const std::vector<std::int64_t>& shape) {
    std::size_t size = 1;
    for (const std::int64_t side : shape) size *= static_cast<std::size_t>(side);
    return size;
}

void* fail(pc_engine_failure* failure, const char* code) {
    std::snprintf(failure->code, sizeof failure->code, "%s", code);
    std::snprintf(failure->message, sizeof failure->message, "the fake engine was asked to fail");
    return nullptr;
}

std::vector<std::string> more_inputs(const std::string& stem) {
    std::ifstream file(stem + ".onnx");
    std::vector<std::string> names;
    std::string word;
    if (file >> word && word == "inputs")
        while (file >> word) names.push_back(word);
    return names;
}

// Whole halves of the tests: sign, exponent and mantissa of a finite number that is not tiny.
float from_half(std::uint16_t bits) {
    const float size = std::ldexp(static_cast<float>(1024 + (bits & 1023)), ((bits >> 10) & 31) - 25);
    return bits & 0x8000 ? -size : size;
}

float mean(const Tensor& tensor) {
    float sum = 0;
    for (const float value : tensor.values) sum += value;
    return sum / static_cast<float>(tensor.values.size());
}

Tensor encode(const Tensor& images) {
    Tensor out{{images.shape[0], 3, images.shape[2] / 8, images.shape[3] / 8}, {}};
    for (std::int64_t f = 0; f < images.shape[0]; ++f) {
        const auto each = images.values.size() / static_cast<std::size_t>(images.shape[0]);
        const auto* first = images.values.data() + each * static_cast<std::size_t>(f);
        for (std::size_t i = 0; i < each / 64; ++i) out.values.push_back(first[i * 64 + 9]);
    }
    return out;
}

Tensor step(Inputs& in, const std::vector<std::string>& names, bool broken) {
    Tensor out = *in["x"];
    const float pose = mean(*in["pose_features"]) * in["control_scale"]->values[0];
    const std::size_t words = in["text"]->values.size() / in["weight"]->values.size();
    float eps = 0;
    for (std::size_t b = 0; b < in["weight"]->values.size(); ++b)
        eps += in["weight"]->values[b] * (std::sin(in["timestep"]->values[0]) + in["text"]->values[b * words]);
    for (float& x : out.values) x = in["a"]->values[0] * x + in["b"]->values[0] * (eps + pose + 0.01F * x);
    for (std::size_t i = 8; i < names.size(); ++i)
        for (float& x : out.values) x += 0.01F * static_cast<float>(i) * mean(*in[names[i]]);
    if (broken) out.values[3] = NAN;
    return out;
}

Tensor decode(const Tensor& latents) {
    const std::int64_t frames = latents.shape[0], high = latents.shape[2], wide = latents.shape[3];
    Tensor out{{frames, high * 8, wide * 8, 3}, {}};
    for (std::int64_t f = 0; f < frames; ++f)
        for (std::int64_t y = 0; y < high * 8; ++y)
            for (std::int64_t x = 0; x < wide * 8; ++x)
                for (std::int64_t c = 0; c < 3; ++c) {
                    const auto place = ((f * latents.shape[1] + c) * high + y / 8) * wide + x / 8;
                    out.values.push_back(
                        std::clamp(latents.values[static_cast<std::size_t>(place)] * 40 + 128, 0.0F, 255.0F));
                }
    return out;
}

const pc_engine_module module{
    .abi = PC_ENGINE_ABI,
    .name = "fake",
    .open = [](const pc_engine_options* options, pc_engine_failure*) -> void* {
        return new Engine{options->device ? options->device : "cpu"};
    },
    .close = [](void* engine) { delete static_cast<Engine*>(engine); },
    .device = [](void* engine) { return static_cast<Engine*>(engine)->device.c_str(); },
    .variant = [](void*) { return ""; },
    .load = [](void* raw, const char* path, pc_engine_failure* failure) -> void* {
        auto* engine = static_cast<Engine*>(raw);
        const std::string name = std::filesystem::path(path).filename();
        if (engine->device == "load") return fail(failure, "engine-load");
        if (name == "pose_encoder") return new Graph{engine, name, {"control_images"}};
        if (name == "vae_decoder") return new Graph{engine, name, {"latents"}};
        auto* graph =
            new Graph{engine, name, {"x", "timestep", "a", "b", "text", "weight", "pose_features", "control_scale"}};
        for (const std::string& more : more_inputs(path)) graph->inputs.push_back(more);
        return graph;
    },
    .unload = [](void* graph) { delete static_cast<Graph*>(graph); },
    .input = [](void* raw, std::size_t index) -> const char* {
        const auto& inputs = static_cast<Graph*>(raw)->inputs;
        return index < inputs.size() ? inputs[index].c_str() : nullptr;
    },
    .upload = [](void*, int type, const void* data, const std::int64_t* shape, std::size_t rank,
                 pc_engine_failure*) -> void* {
        auto* tensor = new Tensor{{shape, shape + rank}, {}};
        const std::size_t size = size_of(tensor->shape);
        ++uploads;
        if (type == PC_ENGINE_FLOAT16)
            for (std::size_t i = 0; i < size; ++i)
                tensor->values.push_back(from_half(static_cast<const std::uint16_t*>(data)[i]));
        else if (type == PC_ENGINE_INT64)
            tensor->values.assign(static_cast<const std::int64_t*>(data),
                                  static_cast<const std::int64_t*>(data) + size);
        else
            tensor->values.assign(static_cast<const float*>(data), static_cast<const float*>(data) + size);
        return tensor;
    },
    .run = [](void* raw, const char* const* names, void* const* inputs, std::size_t count, const char*,
              pc_engine_failure* failure) -> void* {
        auto* graph = static_cast<Graph*>(raw);
        if (graph->engine->device == "run") return fail(failure, "engine-run");
        Inputs in;
        for (std::size_t i = 0; i < count; ++i) in[names[i]] = static_cast<const Tensor*>(inputs[i]);
        if (graph->name == "pose_encoder") return new Tensor(encode(*in["control_images"]));
        if (graph->name == "vae_decoder") return new Tensor(decode(*in["latents"]));
        return new Tensor(step(in, graph->inputs, graph->engine->device == "nan"));
    },
    .download = [](void*, void* raw, float* data, std::size_t count, pc_engine_failure* failure) -> int {
        const auto* tensor = static_cast<Tensor*>(raw);
        if (tensor->values.size() != count) return fail(failure, "engine-run"), 0;
        std::copy(tensor->values.begin(), tensor->values.end(), data);
        return 1;
    },
    .release = [](void* tensor) { delete static_cast<Tensor*>(tensor); },
};

}  // namespace

// How many tensors were copied in so far, by all engines.
extern "C" __attribute__((visibility("default"))) int fake_engine_uploads() {
    return uploads;
}

extern "C" __attribute__((visibility("default"))) const pc_engine_module* pc_engine_module_v1() {
    return &module;
}
