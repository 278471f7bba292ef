// The CPU engine of our own: a bundle's graphs as layers written for the purpose (../cpu). It opens no other library.
#include <sched.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <optional>
#include <thread>

#include "../cpu/graphs.hpp"
#include "module.hpp"

namespace posecrafter {
namespace {

// Numbers in the host's memory, of the module's own.
struct Tensor {
    void download(float* data, std::size_t count) const;

    std::vector<int> sizes;
    bool whole;  // int64, not float32
    std::size_t count;
    std::shared_ptr<void> data;
};

struct Graph;

struct Native {
    static constexpr const char* name = "native";

    explicit Native(const pc_engine_options& wanted);
    const char* device() const { return "cpu"; }
    const char* variant() const { return ""; }
    std::unique_ptr<Graph> load(const std::string& stem);
    std::unique_ptr<Tensor> upload(int type, const void* data, const Shape& shape);

    std::optional<cpu::Machine> machine;
    const Graph* ran = nullptr;  // last
};

struct Graph {
    std::unique_ptr<Tensor> run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output);
    std::unique_ptr<Tensor> last(const std::string& output) const;

    Native& engine;
    std::string name;
    std::unique_ptr<cpu::Graph> graph;
    std::vector<std::string> inputs;
    std::vector<cpu::Made> made;  // by the last run
};

// Threads that may run at once, as the system lets this process have them.
int cores() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Native::Native(const pc_engine_options& wanted) {
    if (wanted.device && std::strcmp(wanted.device, "cpu") != 0)
        throw Failure("engine-device", std::string("engine 'native' runs on the cpu, not on '") + wanted.device + "'");
    const std::string precision = wanted.precision ? wanted.precision : "fp32";
    if (precision != "fp32" && precision != "bf16")
        throw Failure("engine-precision", "engine 'native' computes in fp32 or bf16, not in " + precision);
    if (precision == "bf16" && !cpu::kernels().pack_bf16)
        throw Failure("engine-precision", "this CPU has no bf16 arithmetic (AVX512-BF16); use --precision fp32");
    machine.emplace(wanted.threads > 0 ? wanted.threads : cores(), precision == "bf16");
}

std::unique_ptr<Graph> Native::load(const std::string& stem) {
    const cpu::Layers layers(stem);
    std::unique_ptr<cpu::Graph> graph = cpu::make_graph(*machine, layers);
    std::vector<std::string> inputs = graph->inputs();
    return std::unique_ptr<Graph>(new Graph{*this, layers.graph(), std::move(graph), std::move(inputs), {}});
}

std::unique_ptr<Tensor> Native::upload(int type, const void* data, const Shape& shape) {
    if (type == PC_ENGINE_FLOAT16)
        throw Failure("engine-memory", "engine 'native' takes no weights as inputs; use onnxruntime");
    auto made = std::make_unique<Tensor>(Tensor{{}, type == PC_ENGINE_INT64, 1, nullptr});
    for (std::int64_t size : shape) {
        const bool fits = size >= 0 && size <= INT_MAX;
        if (!fits || (size > 0 && made->count > SIZE_MAX / 8 / static_cast<std::size_t>(size)))
            throw Failure("engine-memory", "a tensor is too large for the engine 'native'");
        made->sizes.push_back(static_cast<int>(size));
        made->count *= static_cast<std::size_t>(size);
    }
    const std::size_t bytes = made->count * bytes_of(type);
    made->data = std::shared_ptr<char[]>(new char[bytes]);
    std::memcpy(made->data.get(), data, bytes);
    return made;
}

std::unique_ptr<Tensor> Graph::run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output) {
    std::vector<cpu::Given> given;
    for (const std::string& input : inputs) {
        const Tensor* found = nullptr;
        for (std::size_t i = 0; i < tensors.size() && !found; ++i)
            if (input == names[i]) found = tensors[i];
        if (!found) throw Failure("engine-run", "graph '" + name + "' is not given its input '" + input + "'");
        given.push_back({found->sizes, found->data.get(), found->whole});
    }
    if (engine.ran != this) engine.machine->arena.trim();  // what another graph left idle has other sizes
    engine.ran = this;
    made = graph->run(*engine.machine, given);
    return last(output);
}

std::unique_ptr<Tensor> Graph::last(const std::string& output) const {
    for (const cpu::Made& one : made)
        if (one.name == output) {
            std::size_t count = 1;
            for (int size : one.sizes) count *= static_cast<std::size_t>(size);
            return std::make_unique<Tensor>(Tensor{one.sizes, false, count, one.data});
        }
    throw Failure("engine-run", "graph '" + name + "' has made no output '" + output + "'");
}

void Tensor::download(float* to, std::size_t wanted) const {
    expect_floats(whole ? 0 : count, wanted);
    std::memcpy(to, data.get(), count * sizeof(float));
}

}  // namespace
}  // namespace posecrafter

PC_ENGINE_MODULE(posecrafter::Native, posecrafter::Graph, posecrafter::Tensor)

// For Python, whose graphs return all that they make. The name of an output of the last run by its index, NULL behind
// the last one; its sizes, as many as are returned; the output itself, released like any tensor.
extern "C" {
__attribute__((visibility("default"))) const char* pc_native_output(void* graph, size_t index) {
    const auto& made = static_cast<const posecrafter::Graph*>(graph)->made;
    return index < made.size() ? made[index].name.c_str() : nullptr;
}

__attribute__((visibility("default"))) size_t pc_native_sizes(void* tensor, int64_t* sizes) {
    const auto& own = static_cast<const posecrafter::Tensor*>(tensor)->sizes;
    for (size_t i = 0; i < own.size(); ++i) sizes[i] = own[i];
    return own.size();
}

__attribute__((visibility("default"))) void* pc_native_last(void* graph, const char* output,
                                                            pc_engine_failure* failure) {
    return posecrafter::guarded(failure, "engine-run",
                                [&] { return static_cast<const posecrafter::Graph*>(graph)->last(output).release(); });
}

__attribute__((visibility("default"))) const char* pc_native_kernels() {
    return posecrafter::cpu::kernels().name;
}
}
