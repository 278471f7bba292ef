// TensorRT: the plans that `posecrafter compile --engine tensorrt` built for this GPU. Its library and CUDA's are
// opened at run time; the headers' major release must be the library's. Compiled against TensorRT 11's headers, never
// run.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <mutex>
#include <optional>

#include "module.hpp"
#include "plans.hpp"

namespace posecrafter {
namespace {

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

struct Graph;
struct Tensor;

// One GPU, one stream on which everything happens in order, and one scratch memory for the graphs.
struct TensorRt {
    static constexpr const char* name = "tensorrt";

    explicit TensorRt(const pc_engine_options& wanted);
    const char* device() const { return device_.c_str(); }
    const char* variant() const { return ""; }
    std::unique_ptr<Graph> load(const std::string& stem);
    std::unique_ptr<Tensor> upload(int type, const void* data, const Shape& shape) const;

    int index;
    std::string device_;
    void* library;
    std::string version, target;
    Cuda cuda;
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
    void enter() const { cuda.check(cuda.cudaSetDevice(index), "engine-device", "CUDA on " + device_); }
    void finish() const { cuda.check(cuda.cudaStreamSynchronize(stream), "engine-run", "CUDA on " + device_); }

    void* allocate(std::size_t bytes) const {
        void* pointer = nullptr;
        cuda.check(cuda.cudaMallocAsync(&pointer, std::max<std::size_t>(bytes, 1), stream), "engine-memory",
                   device_ + " has no " + std::to_string(bytes >> 20) + " MiB left; ask for smaller windows");
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
    void download(float* data, std::size_t count) const;

    const TensorRt& engine;
    Shape shape;
    std::size_t bytes;
    void* pointer = nullptr;
};

struct Graph {
    std::unique_ptr<Tensor> run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output);
    void prepare(const char* const* names, const std::vector<Shape>& wanted);

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

// Before the library is opened.
int checked_index(const pc_engine_options& wanted) {
    const int index = index_of(wanted.device ? wanted.device : "cuda");
    if (wanted.precision)
        throw Failure("engine-precision", "a plan has the precision it was built in; leave precision out");
    return index;
}

void* open_tensorrt(const char* path) {
    const std::string numbered = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);
    return open_library(path, {numbered.c_str(), "libnvinfer.so"}, "TensorRT");
}

TensorRt::TensorRt(const pc_engine_options& wanted)
    : index(checked_index(wanted)),
      device_("cuda:" + std::to_string(index)),
      library(open_tensorrt(wanted.library)),
      version(checked_version(library)) {
    enter();
    int major = 0, minor = 0;
    cuda.check(cuda.cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "engine-device", device_);
    cuda.check(cuda.cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "engine-device", device_);
    target = "sm" + std::to_string(major) + std::to_string(minor);
    const auto create = find<decltype(::createInferRuntime_INTERNAL)>(library, "createInferRuntime_INTERNAL");
    runtime.reset(static_cast<nvinfer1::IRuntime*>(create(&logger, NV_TENSORRT_VERSION)));
    if (!runtime) throw Failure("engine-load", "TensorRT does not start: " + logger.last());
    cuda.check(cuda.cudaStreamCreate(&stream), "engine-device", device_);  // last: only the destructor takes it back
}

// stem: <bundle>/graphs/<graph>.
std::unique_ptr<Graph> TensorRt::load(const std::string& path) {
    enter();
    const std::filesystem::path stem(path);
    const std::string graph_name = stem.filename();
    if (!built) built = find_built(stem.parent_path().parent_path(), name, version, target);
    const std::string plan = read_plan(*built, graph_name);
    std::unique_ptr<Graph> graph(new Graph{*this, graph_name, nullptr, nullptr, {}, {}, {}, 0});
    graph->plan.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (graph->plan)
        graph->context.reset(
            graph->plan->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
    if (!graph->context)
        throw Failure("engine-load", "TensorRT cannot load the plan of '" + graph_name + "': " + logger.last() +
                                         ". Run: " + built->cure);
    for (int i = 0; i < graph->plan->getNbIOTensors(); ++i) {
        const char* tensor = graph->plan->getIOTensorName(i);
        const bool is_input = graph->plan->getTensorIOMode(tensor) == nvinfer1::TensorIOMode::kINPUT;
        if (!is_input && graph->plan->getTensorDataType(tensor) != nvinfer1::DataType::kFLOAT)
            throw Failure("engine-load", "the plan of '" + graph_name + "' returns '" + tensor +
                                             "' in another type than float32. Run: " + built->cure);
        (is_input ? graph->inputs : graph->outputs).emplace_back(tensor);
    }
    return graph;
}

// Choose the profile, set the shapes, and hand over the scratch memory that they need.
void Graph::prepare(const char* const* names, const std::vector<Shape>& wanted) {
    if (wanted != shapes) {
        Sizes sizes;
        for (std::size_t i = 0; i < wanted.size(); ++i)
            for (const Dimension& dimension : dimensions)
                if (std::string_view(dimension.input) == names[i] && dimension.axis < wanted[i].size())
                    sizes[dimension.name] = wanted[i][dimension.axis];
        const int profile = choose_profile(*engine.built, name, sizes);
        if (profile != context->getOptimizationProfile())
            did(context->setOptimizationProfileAsync(profile, engine.stream), "take a profile");
        for (std::size_t i = 0; i < wanted.size(); ++i) {
            nvinfer1::Dims sides{};
            if (wanted[i].size() > nvinfer1::Dims::MAX_DIMS) did(false, "take so many dimensions");
            sides.nbDims = static_cast<std::int32_t>(wanted[i].size());
            std::copy(wanted[i].begin(), wanted[i].end(), sides.d);
            did(context->setInputShape(names[i], sides), std::string("take the shape of ") + names[i]);
        }
        shapes = wanted;
        scratch_bytes = context->updateDeviceMemorySizeForShapes();
    }
    context->setDeviceMemoryV2(engine.work_memory(scratch_bytes), static_cast<std::int64_t>(scratch_bytes));
}

std::unique_ptr<Tensor> Graph::run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output) {
    engine.enter();
    std::vector<Shape> wanted;
    for (const Tensor* tensor : tensors) wanted.push_back(tensor->shape);
    prepare(names, wanted);
    for (std::size_t i = 0; i < tensors.size(); ++i)
        did(context->setTensorAddress(names[i], tensors[i]->pointer), "take an input");
    std::vector<std::unique_ptr<Tensor>> others;
    std::unique_ptr<Tensor> result;
    for (const std::string& made : outputs) {
        const nvinfer1::Dims sides = context->getTensorShape(made.c_str());
        if (sides.nbDims < 0 || std::any_of(sides.d, sides.d + sides.nbDims, [](auto side) { return side < 0; }))
            did(false, "tell the shape of " + made);
        auto tensor = std::make_unique<Tensor>(engine, Shape(sides.d, sides.d + sides.nbDims), sizeof(float));
        did(context->setTensorAddress(made.c_str(), tensor->pointer), "take an output");
        (made == output ? result : others.emplace_back()) = std::move(tensor);
    }
    if (!result) did(false, std::string("find the output ") + output);
    did(context->enqueueV3(engine.stream), "run");
    return result;  // what else was made is freed in the stream's order, behind the run
}

std::unique_ptr<Tensor> TensorRt::upload(int type, const void* data, const Shape& shape) const {
    enter();
    auto tensor = std::make_unique<Tensor>(*this, shape, bytes_of(type));
    cuda.check(cuda.cudaMemcpyAsync(tensor->pointer, data, tensor->bytes, cudaMemcpyHostToDevice, stream),
               "engine-memory", "CUDA cannot copy to " + device_);
    finish();  // the caller's array may change afterwards
    return tensor;
}

void Tensor::download(float* data, std::size_t count) const {
    engine.enter();
    expect_floats(bytes / sizeof(float), count);
    engine.cuda.check(engine.cuda.cudaMemcpyAsync(data, pointer, bytes, cudaMemcpyDeviceToHost, engine.stream),
                      "engine-run", "CUDA cannot copy from " + engine.device_);
    engine.finish();
}

}  // namespace
}  // namespace posecrafter

PC_ENGINE_MODULE(posecrafter::TensorRt, posecrafter::Graph, posecrafter::Tensor)
