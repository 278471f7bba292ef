// The CPU engine of our own: a bundle's graphs as layers written for the purpose (../cpu). It opens no other library.
#include <climits>
#include <cstring>
#include <optional>

#include "../cpu/cores.hpp"
#include "../cpu/estimate.hpp"
#include "../cpu/graphs.hpp"
#include "module.hpp"

namespace posecrafter {
namespace {

// A graph with a person's weights.
struct Person {
    std::string graph;
    std::unique_ptr<cpu::Graph> own;
};

// Numbers in the host's memory, of the module's own; or a person.
struct Tensor {
    void download(float* data, std::size_t count) const;

    std::vector<int> sizes;
    bool whole;  // int64, not float32
    std::size_t count;
    std::shared_ptr<void> data;
    std::unique_ptr<Person> person = nullptr;
};

struct Graph;

struct Native {
    static constexpr const char* name = "native";

    explicit Native(const pc_engine_options& wanted);
    const char* device() const { return "cpu"; }
    const char* variant() const { return ""; }
    std::unique_ptr<Graph> load(const std::string& stem);
    std::unique_ptr<Tensor> upload(int type, const void* data, const Shape& shape);
    std::uint64_t memory(const std::string& graphs, const pc_engine_pass& pass);

    std::optional<cpu::Machine> machine;
    const cpu::Graph* ran = nullptr;  // last
    std::string counted;              // the folder of
    std::optional<cpu::Estimate> estimate;
};

struct Graph {
    std::unique_ptr<Tensor> run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output);
    std::unique_ptr<Tensor> pack(const pc_engine_weight* weights, std::size_t count);
    std::unique_ptr<Tensor> last(const std::string& output) const;

    Native& engine;
    std::string name;
    std::optional<cpu::Layers> shared;  // in wait of people, whose graphs share what is not theirs; or
    std::unique_ptr<cpu::Graph> graph;  // the one that there is
    std::vector<std::string> inputs;
    std::vector<cpu::Made> made;  // by the last run
};

Native::Native(const pc_engine_options& wanted) {
    if (wanted.device && std::strcmp(wanted.device, "cpu") != 0)
        throw Failure("engine-device", std::string("engine 'native' runs on the cpu, not on '") + wanted.device + "'");
    const std::string precision = wanted.precision ? wanted.precision : "fp32";
    if (precision != "fp32" && precision != "bf16")
        throw Failure("engine-precision", "engine 'native' computes in fp32 or bf16, not in " + precision);
    if (precision == "bf16" && !cpu::kernels().pack_bf16)
        throw Failure("engine-precision",
                      "this CPU has no bf16 arithmetic (AVX512-BF16 or ARM's BF16); use --precision fp32");
    machine.emplace(wanted.threads > 0 ? wanted.threads : cpu::usable_cores(), precision == "bf16");
}

std::unique_ptr<Graph> Native::load(const std::string& stem) {
    cpu::Layers layers(stem);
    auto made = std::unique_ptr<Graph>(new Graph{*this, layers.graph(), {}, {}, cpu::inputs_of(layers), {}});
    if (!layers.shared()) {
        made->graph = cpu::make_graph(*machine, layers);
        return made;
    }
    made->inputs.push_back(PC_ENGINE_PERSON);
    made->shared.emplace(std::move(layers));
    return made;
}

// Sizes that are counted in ints. Throws Failure.
std::vector<int> sizes_of(const std::int64_t* shape, std::size_t rank) {
    std::vector<int> sizes;
    for (std::size_t i = 0; i < rank; ++i) {
        if (shape[i] < 0 || shape[i] > INT_MAX)
            throw Failure("engine-memory", "a tensor is too large for the engine 'native'");
        sizes.push_back(static_cast<int>(shape[i]));
    }
    return sizes;
}

std::unique_ptr<Tensor> Graph::pack(const pc_engine_weight* weights, std::size_t count) {
    if (!shared) throw Failure("engine-load", "graph '" + name + "' takes no person's weights");
    std::vector<cpu::Weight> given;
    for (const pc_engine_weight* weight = weights; weight != weights + count; ++weight) {
        if (weight->type != PC_ENGINE_FLOAT32 && weight->type != PC_ENGINE_FLOAT16)
            throw Failure("engine-load", std::string("a person's ") + weight->input + " holds no floats");
        const bool half = weight->type == PC_ENGINE_FLOAT16;
        given.push_back({weight->input, sizes_of(weight->shape, weight->rank), weight->data, half});
    }
    auto person = std::make_unique<Person>(Person{name, cpu::make_graph(*engine.machine, shared->with(given))});
    return std::unique_ptr<Tensor>(new Tensor{{}, false, 0, nullptr, std::move(person)});
}

std::unique_ptr<Tensor> Native::upload(int type, const void* data, const Shape& shape) {
    if (type == PC_ENGINE_FLOAT16)
        throw Failure("engine-memory", "engine 'native' computes with no halves; weights are packed");
    auto made =
        std::unique_ptr<Tensor>(new Tensor{sizes_of(shape.data(), shape.size()), type == PC_ENGINE_INT64, 1, nullptr});
    for (int size : made->sizes) {
        if (size > 0 && made->count > SIZE_MAX / 8 / static_cast<std::size_t>(size))
            throw Failure("engine-memory", "a tensor is too large for the engine 'native'");
        made->count *= static_cast<std::size_t>(size);
    }
    const std::size_t bytes = made->count * bytes_of(type);
    made->data = std::shared_ptr<char[]>(new char[bytes]);
    std::memcpy(made->data.get(), data, bytes);
    return made;
}

std::uint64_t Native::memory(const std::string& graphs, const pc_engine_pass& pass) {
    if (counted != graphs) {
        estimate.emplace(graphs, machine->threads, machine->bf16);
        counted = graphs;
    }
    return estimate->bytes({pass.frames, pass.prompts, pass.chunk, pass.height, pass.width, pass.factor, pass.tokens});
}

std::unique_ptr<Tensor> Graph::run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output) {
    cpu::Graph* now = graph.get();
    std::vector<cpu::Given> given;
    for (const std::string& input : inputs) {
        const Tensor* found = nullptr;
        for (std::size_t i = 0; i < tensors.size() && !found; ++i)
            if (input == names[i]) found = tensors[i];
        if (!found) throw Failure("engine-run", "graph '" + name + "' is not given its input '" + input + "'");
        const bool persons = shared && input == PC_ENGINE_PERSON;
        if (persons ? !found->person || found->person->graph != name : found->person != nullptr)
            throw Failure("engine-run", "graph '" + name + "' is given another tensor than its input '" + input + "'");
        if (persons)
            now = found->person->own.get();
        else
            given.push_back({found->sizes, found->data.get(), found->whole});
    }
    if (engine.ran != now) engine.machine->arena.trim();  // what another graph left idle has other sizes
    engine.ran = now;
    made = now->run(*engine.machine, given);
    return last(output);
}

std::unique_ptr<Tensor> Graph::last(const std::string& output) const {
    for (const cpu::Made& one : made)
        if (one.name == output) {
            return std::unique_ptr<Tensor>(new Tensor{one.sizes, false, one.count(), one.data});
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
