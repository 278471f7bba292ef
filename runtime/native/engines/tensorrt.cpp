// TensorRT: the plans that `posecrafter compile --engine tensorrt` built for this GPU. Its library and CUDA's are
// opened at run time; the headers' major release must be the library's. Compiled against TensorRT 11's headers, never
// run.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>

#include "../core/error.hpp"
#include "failure.hpp"
#include "plans.hpp"

namespace posecrafter {
namespace {

using Shape = std::vector<std::int64_t>;

// Where a pass's sizes are read from: input, axis, the name that profiles use. Plans do not keep these names.
struct Dimension {
    const char* input;
    std::size_t axis;
    const char* name;
};
constexpr Dimension dimensions[] = {
    {"x", 0, "frames"},
    {"x", 2, "h"},
    {"x", 3, "w"},
    {"text", 0, "prompts"},
    {"latents", 0, "frames"},
    {"latents", 2, "h"},
    {"latents", 3, "w"},
    {"control_images", 0, "frames"},
    {"control_images", 2, "height"},
    {"control_images", 3, "width"},
};

void* open_library(const char* given, std::initializer_list<const char*> names, const char* what) {
    void* handle = given ? dlopen(given, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) : nullptr;
    if (!given)
        for (const char* name : names)
            if (!handle) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle) throw Failure("engine-missing", std::string("cannot open the library of ") + what + ": " + dlerror());
    return handle;
}

template <class Function>
Function* find(void* library, const char* name) {
    void* found = dlsym(library, name);
    if (!found)
        throw Failure("engine-version", std::string("the library has no ") + name + "; install a later release");
    return reinterpret_cast<Function*>(found);
}

// The functions of CUDA's runtime that are used here, found by name.
struct Cuda {
    void* handle = open_library(nullptr, {"libcudart.so.13", "libcudart.so.12", "libcudart.so"}, "CUDA's runtime");
#define PC_CUDA(name) decltype(::name)* name = find<decltype(::name)>(handle, #name)
    PC_CUDA(cudaSetDevice);
    PC_CUDA(cudaDeviceGetAttribute);
    PC_CUDA(cudaStreamCreate);
    PC_CUDA(cudaStreamDestroy);
    PC_CUDA(cudaStreamSynchronize);
    PC_CUDA(cudaMallocAsync);
    PC_CUDA(cudaFreeAsync);
    PC_CUDA(cudaMemcpyAsync);
    PC_CUDA(cudaGetErrorString);
#undef PC_CUDA

    void check(cudaError_t status, const char* code, const std::string& what) const {
        if (status != cudaSuccess) throw Failure(code, what + ": " + cudaGetErrorString(status));
    }
};

// Keeps the last error, which TensorRT tells nowhere else.
class Logger : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        try {
            const std::lock_guard lock(mutex_);
            last_ = message;
        } catch (...) {  // a lost message is no reason to stop
        }
    }
    std::string last() {
        const std::lock_guard lock(mutex_);
        return last_.empty() ? "it does not say why" : last_.substr(0, last_.find('\n'));
    }

  private:
    std::mutex mutex_;
    std::string last_;
};

// One GPU, one stream on which everything happens in order, and one scratch memory for the graphs.
struct TensorRt {
    Cuda cuda;
    int index = 0;
    std::string device, version, target;
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    cudaStream_t stream = nullptr;
    void* scratch = nullptr;
    std::size_t scratch_bytes = 0;
    std::optional<Built> built;  // of the bundle, found with its first graph

    ~TensorRt() {
        cuda.cudaSetDevice(index);
        if (scratch) cuda.cudaFreeAsync(scratch, stream);
        if (!stream) return;
        cuda.cudaStreamSynchronize(stream);
        cuda.cudaStreamDestroy(stream);
    }

    // CUDA's device is the thread's, and a session may be used from any.
    void enter() const { cuda.check(cuda.cudaSetDevice(index), "engine-device", "CUDA on " + device); }
    void finish() const { cuda.check(cuda.cudaStreamSynchronize(stream), "engine-run", "CUDA on " + device); }

    void* allocate(std::size_t bytes) const {
        void* pointer = nullptr;
        cuda.check(cuda.cudaMallocAsync(&pointer, std::max<std::size_t>(bytes, 1), stream), "engine-memory",
                   device + " has no " + std::to_string(bytes >> 20) + " MiB left; ask for smaller windows");
        return pointer;
    }

    // Memory that graphs work in, one after the other; it only grows.
    void* work_memory(std::size_t bytes) {
        if (bytes > scratch_bytes) {
            if (scratch) cuda.cudaFreeAsync(scratch, stream);
            scratch = nullptr;
            scratch_bytes = 0;
            scratch = allocate(bytes);
            scratch_bytes = bytes;
        }
        return scratch;
    }
};

struct Tensor {
    Tensor(const TensorRt& on, Shape sides, std::size_t width) : engine(on), shape(std::move(sides)), bytes(width) {
        for (const std::int64_t side : shape) bytes *= static_cast<std::size_t>(side);
        pointer = engine.allocate(bytes);
    }
    Tensor(const Tensor&) = delete;
    Tensor& operator=(const Tensor&) = delete;
    ~Tensor() { engine.cuda.cudaFreeAsync(pointer, engine.stream); }

    const TensorRt& engine;
    Shape shape;
    std::size_t bytes;
    void* pointer = nullptr;
};

struct Graph {
    TensorRt& engine;
    std::string name;
    std::unique_ptr<nvinfer1::ICudaEngine> plan;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    std::vector<std::string> inputs, outputs;
    std::vector<Shape> shapes;  // of the inputs, which the context is set to
    std::size_t scratch_bytes = 0;

    void did(bool done, const std::string& what) {
        if (done) return;
        shapes.clear();
        throw Failure("engine-run", "TensorRT cannot " + what + " in graph '" + name + "': " + engine.logger.last());
    }
};

int index_of(const std::string& device) {
    if (device == "cuda") return 0;
    const bool numbered = device.starts_with("cuda:") && device.size() > 5 && device.size() < 9 &&
                          std::all_of(device.begin() + 5, device.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!numbered) throw Failure("engine-device", "TensorRT runs on cuda or cuda:N, not on '" + device + "'");
    return std::stoi(device.substr(5));
}

// The library's release, "11.4.0.33". Its objects are called through tables that the headers lay out, so a release is
// taken only if these are the same and hold everything that is used here.
std::string checked_version(void* library) {
    std::vector<std::int32_t> parts;
    std::string version;
    for (const char* part : {"Major", "Minor", "Patch", "Build"}) {
        const std::string name = std::string("getInferLib") + part + "Version";
        parts.push_back(find<std::int32_t()>(library, name.c_str())());
        version += (version.empty() ? "" : ".") + std::to_string(parts.back());
    }
    if (parts[0] != NV_TENSORRT_MAJOR || (parts[0] == 10 && parts[1] < 8))
        throw Failure("engine-version", "this module is for TensorRT " + std::to_string(NV_TENSORRT_MAJOR) +
                                            ", 10.8 at least; the library is " + version);
    return version;
}

TensorRt* make_engine(const pc_engine_options& wanted) {
    const std::string device = wanted.device ? wanted.device : "cuda";
    const int index = index_of(device);
    if (wanted.precision)
        throw Failure("engine-precision", "a plan has the precision it was built in; leave precision out");
    const std::string numbered = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    void* library = open_library(wanted.library, {numbered.c_str(), "libnvinfer.so"}, "TensorRT");
    const std::string version = checked_version(library);
    auto engine = std::make_unique<TensorRt>();
    engine->index = index;
    engine->device = "cuda:" + std::to_string(index);
    engine->version = version;
    engine->enter();
    int major = 0, minor = 0;
    const Cuda& cuda = engine->cuda;
    cuda.check(cuda.cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "engine-device", device);
    cuda.check(cuda.cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "engine-device", device);
    engine->target = "sm" + std::to_string(major) + std::to_string(minor);
    cuda.check(cuda.cudaStreamCreate(&engine->stream), "engine-device", device);
    const auto create = find<decltype(::createInferRuntime_INTERNAL)>(library, "createInferRuntime_INTERNAL");
    nvinfer1::ILogger* logger = &engine->logger;
    engine->runtime.reset(static_cast<nvinfer1::IRuntime*>(create(logger, NV_TENSORRT_VERSION)));
    if (!engine->runtime) throw Failure("engine-load", "TensorRT does not start: " + engine->logger.last());
    return engine.release();
}

// stem: <bundle>/graphs/<graph>.
Graph* load_graph(TensorRt& engine, const std::filesystem::path& stem) {
    engine.enter();
    const std::string name = stem.filename();
    if (!engine.built)
        engine.built = find_built(stem.parent_path().parent_path(), "tensorrt", engine.version, engine.target);
    const std::string plan = read_plan(*engine.built, name);
    auto graph = std::make_unique<Graph>(Graph{engine, name, nullptr, nullptr, {}, {}, {}, 0});
    graph->plan.reset(engine.runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (graph->plan)
        graph->context.reset(
            graph->plan->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (!graph->context)
        throw Failure("engine-load", "TensorRT cannot load the plan of '" + name + "': " + engine.logger.last() +
                                         ". Run: " + engine.built->cure);
    for (int i = 0; i < graph->plan->getNbIOTensors(); ++i) {
        const char* tensor = graph->plan->getIOTensorName(i);
        const bool is_input = graph->plan->getTensorIOMode(tensor) == nvinfer1::TensorIOMode::kINPUT;
        if (!is_input && graph->plan->getTensorDataType(tensor) != nvinfer1::DataType::kFLOAT)
            throw Failure("engine-load", "the plan of '" + name + "' returns '" + tensor +
                                             "' in another type than float32. Run: " + engine.built->cure);
        (is_input ? graph->inputs : graph->outputs).emplace_back(tensor);
    }
    return graph.release();
}

// Choose the profile, set the shapes, and hand over the scratch memory that they need.
void prepare(Graph& graph, const char* const* names, const std::vector<Shape>& shapes) {
    TensorRt& engine = graph.engine;
    nvinfer1::IExecutionContext& context = *graph.context;
    if (shapes != graph.shapes) {
        Sizes sizes;
        for (std::size_t i = 0; i < shapes.size(); ++i)
            for (const Dimension& dimension : dimensions)
                if (std::string_view(dimension.input) == names[i] && dimension.axis < shapes[i].size())
                    sizes[dimension.name] = shapes[i][dimension.axis];
        const int profile = choose_profile(*engine.built, graph.name, sizes);
        if (profile != context.getOptimizationProfile())
            graph.did(context.setOptimizationProfileAsync(profile, engine.stream), "take a profile");
        for (std::size_t i = 0; i < shapes.size(); ++i) {
            nvinfer1::Dims sides{};
            if (shapes[i].size() > nvinfer1::Dims::MAX_DIMS) graph.did(false, "take so many dimensions");
            sides.nbDims = static_cast<std::int32_t>(shapes[i].size());
            std::copy(shapes[i].begin(), shapes[i].end(), sides.d);
            graph.did(context.setInputShape(names[i], sides), std::string("take the shape of ") + names[i]);
        }
        graph.shapes = shapes;
        graph.scratch_bytes = context.updateDeviceMemorySizeForShapes();
    }
    context.setDeviceMemoryV2(engine.work_memory(graph.scratch_bytes), static_cast<std::int64_t>(graph.scratch_bytes));
}

Tensor* run(Graph& graph, const char* const* names, void* const* inputs, std::size_t count, const char* output) {
    graph.engine.enter();
    nvinfer1::IExecutionContext& context = *graph.context;
    std::vector<Shape> shapes;
    for (std::size_t i = 0; i < count; ++i) shapes.push_back(static_cast<const Tensor*>(inputs[i])->shape);
    prepare(graph, names, shapes);
    for (std::size_t i = 0; i < count; ++i)
        graph.did(context.setTensorAddress(names[i], static_cast<const Tensor*>(inputs[i])->pointer), "take an input");
    std::vector<std::unique_ptr<Tensor>> made;
    std::unique_ptr<Tensor> wanted;
    for (const std::string& name : graph.outputs) {
        const nvinfer1::Dims sides = context.getTensorShape(name.c_str());
        if (sides.nbDims < 0 || std::any_of(sides.d, sides.d + sides.nbDims, [](auto side) { return side < 0; }))
            graph.did(false, "tell the shape of " + name);
        auto tensor = std::make_unique<Tensor>(graph.engine, Shape(sides.d, sides.d + sides.nbDims), sizeof(float));
        graph.did(context.setTensorAddress(name.c_str(), tensor->pointer), "take an output");
        (name == output ? wanted : made.emplace_back()) = std::move(tensor);
    }
    if (!wanted) graph.did(false, std::string("find the output ") + output);
    graph.did(context.enqueueV3(graph.engine.stream), "run");
    return wanted.release();  // what else was made is freed in the stream's order, behind the run
}

Tensor* upload(const TensorRt& engine, int type, const void* data, Shape shape) {
    engine.enter();
    const std::size_t width = type == PC_ENGINE_INT64 ? 8 : type == PC_ENGINE_FLOAT16 ? 2 : 4;
    auto tensor = std::make_unique<Tensor>(engine, std::move(shape), width);
    engine.cuda.check(
        engine.cuda.cudaMemcpyAsync(tensor->pointer, data, tensor->bytes, cudaMemcpyHostToDevice, engine.stream),
        "engine-memory", "CUDA cannot copy to " + engine.device);
    engine.finish();  // the caller's array may change afterwards
    return tensor.release();
}

void download(const Tensor& tensor, float* data, std::size_t count) {
    const TensorRt& engine = tensor.engine;
    engine.enter();
    if (tensor.bytes != count * sizeof(float))
        throw Failure("engine-run", "a graph returned " + std::to_string(tensor.bytes / sizeof(float)) +
                                        " numbers, expected " + std::to_string(count) + "; export the bundle again");
    engine.cuda.check(
        engine.cuda.cudaMemcpyAsync(data, tensor.pointer, tensor.bytes, cudaMemcpyDeviceToHost, engine.stream),
        "engine-run", "CUDA cannot copy from " + engine.device);
    engine.finish();
}

// The core's errors, which plans are refused with, in the modules' form.
template <class Work>
auto translated(Work work) {
    try {
        return work();
    } catch (const Error& error) {
        throw Failure(error.code(), error.what());
    }
}

const pc_engine_module module{
    .abi = PC_ENGINE_ABI,
    .name = "tensorrt",
    .open = [](const pc_engine_options* options, pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-load", [&]() -> void* { return make_engine(*options); });
    },
    .close = [](void* engine) { delete static_cast<TensorRt*>(engine); },
    .device = [](void* engine) { return static_cast<TensorRt*>(engine)->device.c_str(); },
    .variant = [](void*) { return ""; },
    .load = [](void* engine, const char* path, pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-load", [&]() -> void* {
            return translated([&] { return load_graph(*static_cast<TensorRt*>(engine), path); });
        });
    },
    .unload = [](void* graph) { delete static_cast<Graph*>(graph); },
    .input = [](void* graph, std::size_t index) -> const char* {
        const auto& inputs = static_cast<Graph*>(graph)->inputs;
        return index < inputs.size() ? inputs[index].c_str() : nullptr;
    },
    .upload = [](void* engine, int type, const void* data, const std::int64_t* shape, std::size_t rank,
                 pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-memory", [&]() -> void* {
            return upload(*static_cast<TensorRt*>(engine), type, data, {shape, shape + rank});
        });
    },
    .run = [](void* graph, const char* const* names, void* const* inputs, std::size_t count, const char* output,
              pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-run", [&]() -> void* {
            return translated([&] { return run(*static_cast<Graph*>(graph), names, inputs, count, output); });
        });
    },
    .download = [](void*, void* tensor, float* data, std::size_t count, pc_engine_failure* failure) -> int {
        return guarded(failure, "engine-run", [&] { return download(*static_cast<Tensor*>(tensor), data, count), 1; });
    },
    .release = [](void* tensor) { delete static_cast<Tensor*>(tensor); },
};

}  // namespace
}  // namespace posecrafter

extern "C" __attribute__((visibility("default"))) const pc_engine_module* pc_engine_module_v1() {
    return &posecrafter::module;
}
