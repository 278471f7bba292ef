// An engine of a few lines, with the graphs of a bundle as plain arithmetic. Its device says what shall go wrong:
// "cpu" nothing, "nan" the latents, "run" a run, "load" a graph. A denoiser's file that reads "inputs A B" has the
// inputs A and B besides the usual ones, as a shared bundle's has a person's weights.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "module.hpp"

namespace {

using posecrafter::Failure;
using posecrafter::Shape;

// Counts those that there are.
struct Counted {
    Counted() { ++held; }
    Counted(const Counted&) { ++held; }
    Counted& operator=(const Counted&) = default;
    ~Counted() { --held; }
    static inline std::atomic<int> held{0};
};

struct Tensor {
    void download(float* data, std::size_t count) const {
        posecrafter::expect_floats(values.size(), count);
        std::copy(values.begin(), values.end(), data);
    }

    Shape shape;
    std::vector<float> values;
    Counted counted{};
};

struct Graph {
    std::unique_ptr<Tensor> run(const char* const* names, const std::vector<Tensor*>& tensors, const char*);

    std::string device, name;
    std::vector<std::string> inputs;
};

struct FakeEngine {
    static constexpr const char* name = "fake";

    explicit FakeEngine(const pc_engine_options& options) : device_(options.device ? options.device : "cpu") {}
    const char* device() const { return device_.c_str(); }
    const char* variant() const { return ""; }
    std::unique_ptr<Graph> load(const std::string& stem);
    std::unique_ptr<Tensor> upload(int type, const void* data, const Shape& shape);

    std::string device_;
};
using Inputs = std::map<std::string, const Tensor*>;

std::atomic<int> uploads{0};

std::size_t size_of(const Shape& shape) {
    std::size_t size = 1;
    for (const std::int64_t side : shape) size *= static_cast<std::size_t>(side);
    return size;
}

[[noreturn]] void fail(const char* code) {
    throw Failure(code, "the fake engine was asked to fail");
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

// data: of any alignment.
template <class Number>
Number number_at(const void* data, std::size_t index) {
    Number out;
    std::memcpy(&out, static_cast<const char*>(data) + index * sizeof out, sizeof out);
    return out;
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

std::unique_ptr<Graph> FakeEngine::load(const std::string& stem) {
    const std::string graph = std::filesystem::path(stem).filename();
    if (device_ == "load") fail("engine-load");
    std::vector<std::string> inputs = {"x", "timestep", "a", "b", "text", "weight", "pose_features", "control_scale"};
    if (graph == "pose_encoder") inputs = {"control_images"};
    if (graph == "vae_decoder") inputs = {"latents"};
    for (const std::string& more : more_inputs(stem)) inputs.push_back(more);
    return std::make_unique<Graph>(Graph{device_, graph, std::move(inputs)});
}

std::unique_ptr<Tensor> FakeEngine::upload(int type, const void* data, const Shape& shape) {
    ++uploads;
    auto tensor = std::make_unique<Tensor>(Tensor{shape, std::vector<float>(size_of(shape))});
    for (std::size_t i = 0; i < tensor->values.size(); ++i)
        tensor->values[i] = type == PC_ENGINE_FLOAT16 ? from_half(number_at<std::uint16_t>(data, i))
                            : type == PC_ENGINE_INT64 ? static_cast<float>(number_at<std::int64_t>(data, i))
                                                      : number_at<float>(data, i);
    return tensor;
}

std::unique_ptr<Tensor> Graph::run(const char* const* names, const std::vector<Tensor*>& tensors, const char*) {
    if (device == "run") fail("engine-run");
    if (device == "memory") throw std::bad_alloc();
    Inputs in;
    for (std::size_t i = 0; i < tensors.size(); ++i) in[names[i]] = tensors[i];
    if (name == "pose_encoder") return std::make_unique<Tensor>(encode(*in["control_images"]));
    if (name == "vae_decoder") return std::make_unique<Tensor>(decode(*in["latents"]));
    return std::make_unique<Tensor>(step(in, inputs, device == "nan"));
}

}  // namespace

// How many tensors there are, of all engines.
extern "C" __attribute__((visibility("default"))) int fake_engine_held() {
    return Counted::held;
}

// How many tensors were copied in so far, by all engines.
extern "C" __attribute__((visibility("default"))) int fake_engine_uploads() {
    return uploads;
}

PC_ENGINE_MODULE(FakeEngine, Graph, Tensor)
