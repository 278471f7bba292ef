// ONNX Runtime: the portable default. The library is opened at run time, so any release from 1.21 on will do.
#include <dlfcn.h>
#include <onnxruntime/onnxruntime_c_api.h>

#include <cstring>
#include <map>
#include <mutex>

#include "module.hpp"

namespace posecrafter {
namespace {

// The first line of a status, which is released.
std::string line_of(const OrtApi& api, OrtStatus* status) {
    std::string message = api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    return message.substr(0, message.find('\n'));
}

void check(const OrtApi& api, OrtStatus* status, const char* code, const std::string& what) {
    if (status) throw Failure(code, what + ": " + line_of(api, status));
}

// The environment is the process's, and ONNX Runtime looks for its arena without a lock while it loads a graph.
std::mutex arenas;

template <class T>
using Owned = std::unique_ptr<T, void(ORT_API_CALL*)(T*)>;

// A value in the host's memory. The number tells it from every other of its engine, also from one that had its place
// in memory before.
struct Tensor {
    void download(float* data, std::size_t count) const;

    const OrtApi& api;
    Owned<OrtValue> value;
    std::uint64_t number;
};

struct Graph;

struct OnnxRuntime {
    static constexpr const char* name = "onnxruntime";

    explicit OnnxRuntime(const pc_engine_options& wanted);
    ~OnnxRuntime() { renew_arena(); }
    void renew_arena() const;
    const char* device() const { return device_.c_str(); }
    const char* variant() const { return device_ == "cpu" ? ".cpu" : ""; }
    std::unique_ptr<Graph> load(const std::string& stem);
    std::unique_ptr<Tensor> upload(int type, const void* data, const Shape& shape);
    std::unique_ptr<Tensor> own(OrtValue* value);

    std::string device_;
    const OrtApi& api;
    Owned<OrtEnv> env;
    Owned<OrtSessionOptions> options;
    Owned<OrtMemoryInfo> host;
    OrtAllocator* allocator = nullptr;  // the default one; it is not ours
    std::uint64_t numbered = 0;
};

// What is bound to a graph's inputs stays bound until another tensor takes its place: on a GPU binding is what copies,
// so a person's weights are copied once and not at every step.
struct Graph {
    std::unique_ptr<Tensor> run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output);

    OnnxRuntime& engine;
    std::string name;
    Owned<OrtSession> session;
    Owned<OrtIoBinding> binding;
    std::vector<std::string> inputs;
    std::map<std::string, std::uint64_t, std::less<>> bound;  // input -> number of its tensor
};

const OrtApi& open_library(const char* path) {
    void* library = nullptr;
    for (const char* name : {path, "libonnxruntime.so.1", "libonnxruntime.so"}) {
        if (name && !library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (path && !library)
            throw Failure("engine-missing", std::string("cannot open ONNX Runtime's library: ") + dlerror());
    }
    if (!library)
        throw Failure("engine-missing",
                      "there is no libonnxruntime.so on the loader's path; name it in engine_library "
                      "(pip install onnxruntime has one in onnxruntime/capi)");
    const auto base = reinterpret_cast<const OrtApiBase*(ORT_API_CALL*)()>(dlsym(library, "OrtGetApiBase"));
    if (!base) throw Failure("engine-missing", std::string(path ? path : "libonnxruntime.so") + " is not ONNX Runtime");
    const OrtApi* api = base()->GetApi(ORT_API_VERSION);
    if (!api)
        throw Failure("engine-version", std::string("ONNX Runtime ") + base()->GetVersionString() + " is too old; 1." +
                                            std::to_string(ORT_API_VERSION) + " or later is needed");
    return *api;
}

// Checked before the library is opened.
std::string device_of(const pc_engine_options& wanted) {
    const std::string device = wanted.device ? wanted.device : "cpu";
    if (device != "cpu" && device != "cuda" && device != "tensorrt")
        throw Failure("engine-device", "ONNX Runtime runs on cpu, cuda or tensorrt, not on '" + device + "'");
    if (wanted.precision)
        throw Failure("engine-precision",
                      "ONNX Runtime computes in the bundle's own precision; leave precision out, or take openvino");
    return device;
}

void add_cuda(const OrtApi& api, OrtSessionOptions* options) {
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    check(api, api.CreateCUDAProviderOptions(&cuda), "engine-device", "ONNX Runtime has no CUDA provider");
    const Owned<OrtCUDAProviderOptionsV2> owned(cuda, api.ReleaseCUDAProviderOptions);
    check(api, api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda), "engine-device",
          "ONNX Runtime has no CUDA provider here");
}

void add_tensorrt(const OrtApi& api, OrtSessionOptions* options) {
    OrtTensorRTProviderOptionsV2* tensorrt = nullptr;
    check(api, api.CreateTensorRTProviderOptions(&tensorrt), "engine-device", "ONNX Runtime has no TensorRT provider");
    const Owned<OrtTensorRTProviderOptionsV2> owned(tensorrt, api.ReleaseTensorRTProviderOptions);
    check(api, api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, tensorrt), "engine-device",
          "ONNX Runtime has no TensorRT provider here");
}

// What `make` stores through its argument, to be released by `release`.
template <class T, class Make>
Owned<T> made(const OrtApi& api, void(ORT_API_CALL* release)(T*), const char* code, const std::string& what,
              Make make) {
    T* raw = nullptr;
    check(api, make(&raw), code, what);
    return {raw, release};
}

OnnxRuntime::OnnxRuntime(const pc_engine_options& wanted)
    : device_(device_of(wanted)),
      api(open_library(wanted.library)),
      env(made(api, api.ReleaseEnv, "engine-load", "ONNX Runtime does not start",
               [&](OrtEnv** out) { return api.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "posecrafter", out); })),
      options(made(api, api.ReleaseSessionOptions, "engine-load", "ONNX Runtime has no session options",
                   [&](OrtSessionOptions** out) { return api.CreateSessionOptions(out); })),
      host(made(
          api, api.ReleaseMemoryInfo, "engine-load", "ONNX Runtime does not know the host's memory",
          [&](OrtMemoryInfo** out) { return api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out); })) {
    // Patterns reserve one block for a whole run of each size: memory, for no measurable time.
    check(api, api.DisableMemPattern(options.get()), "engine-load", "ONNX Runtime's memory");
    check(api, api.AddSessionConfigEntry(options.get(), "session.use_env_allocators", "1"), "engine-load",
          "ONNX Runtime's memory");
    renew_arena();
    if (wanted.threads > 0)
        check(api, api.SetIntraOpNumThreads(options.get(), wanted.threads), "engine-load", "ONNX Runtime's threads");
    if (device_ == "tensorrt") add_tensorrt(api, options.get());
    if (device_ != "cpu") add_cuda(api, options.get());
    check(api, api.GetAllocatorWithDefaultOptions(&allocator), "engine-load", "ONNX Runtime has no allocator");
}

// Give the graphs that are loaded from now on one arena, and let go of the one before once its last graph has gone.
// Graphs of an engine run one after another; in an arena of its own each would keep what its largest run took. A
// release that refuses a second arena goes on with the first.
void OnnxRuntime::renew_arena() const {
    const std::lock_guard lock(arenas);
    const char* key = "arena_extend_strategy";
    const std::size_t as_requested = 1;  // not to the next power of two
    OrtArenaCfg* raw = nullptr;
    if (OrtStatus* refused = api.CreateArenaCfgV2(&key, &as_requested, 1, &raw)) return api.ReleaseStatus(refused);
    const Owned<OrtArenaCfg> arena(raw, api.ReleaseArenaCfg);
    if (OrtStatus* refused = api.CreateAndRegisterAllocator(env.get(), host.get(), arena.get()))
        api.ReleaseStatus(refused);
}

std::unique_ptr<Graph> OnnxRuntime::load(const std::string& stem) {
    const std::string path = stem + ".onnx", what = "ONNX Runtime cannot load " + path;
    auto session = made(api, api.ReleaseSession, "engine-load", what, [&](OrtSession** out) {
        const std::lock_guard lock(arenas);
        return api.CreateSession(env.get(), path.c_str(), options.get(), out);
    });
    auto binding = made(api, api.ReleaseIoBinding, "engine-load", what,
                        [&](OrtIoBinding** out) { return api.CreateIoBinding(session.get(), out); });
    std::vector<std::string> inputs;
    std::size_t count = 0;
    check(api, api.SessionGetInputCount(session.get(), &count), "engine-load", what);
    for (std::size_t i = 0; i < count; ++i) {
        char* input = nullptr;
        check(api, api.SessionGetInputName(session.get(), i, allocator, &input), "engine-load", what);
        inputs.emplace_back(input);
        allocator->Free(allocator, input);
    }
    return std::unique_ptr<Graph>(
        new Graph{*this, path, std::move(session), std::move(binding), std::move(inputs), {}});
}

std::unique_ptr<Tensor> OnnxRuntime::own(OrtValue* value) {
    Owned<OrtValue> owned(value, api.ReleaseValue);
    return std::unique_ptr<Tensor>(new Tensor{api, std::move(owned), ++numbered});
}

ONNXTensorElementDataType word_of(int type) {
    if (type == PC_ENGINE_FLOAT16) return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    return type == PC_ENGINE_INT64 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

std::unique_ptr<Tensor> OnnxRuntime::upload(int type, const void* data, const Shape& shape) {
    OrtValue* value = nullptr;
    check(api, api.CreateTensorAsOrtValue(allocator, shape.data(), shape.size(), word_of(type), &value),
          "engine-memory", "ONNX Runtime cannot allocate a tensor");
    auto tensor = own(value);
    void* to = nullptr;
    check(api, api.GetTensorMutableData(value, &to), "engine-memory", "ONNX Runtime has no memory for a tensor");
    std::size_t size = bytes_of(type);
    for (const std::int64_t side : shape) size *= static_cast<std::size_t>(side);
    if (size > 0) std::memcpy(to, data, size);
    return tensor;
}

std::unique_ptr<Tensor> Graph::run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output) {
    const OrtApi& api = engine.api;
    const std::string what = "ONNX Runtime failed in " + name;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        if (const auto known = bound.find(names[i]); known != bound.end() && known->second == tensors[i]->number)
            continue;
        bound[names[i]] = 0;  // until it is done
        check(api, api.BindInput(binding.get(), names[i], tensors[i]->value.get()), "engine-run", what);
        bound[names[i]] = tensors[i]->number;
    }
    check(api, api.BindOutputToDevice(binding.get(), output, engine.host.get()), "engine-run", what);
    check(api, api.SynchronizeBoundInputs(binding.get()), "engine-run", what);
    check(api, api.RunWithBinding(session.get(), nullptr, binding.get()), "engine-run", what);
    OrtValue** values = nullptr;
    std::size_t count = 0;
    check(api, api.GetBoundOutputValues(binding.get(), engine.allocator, &values, &count), "engine-run", what);
    auto result = engine.own(values[0]);  // one output is bound, so there is one
    engine.allocator->Free(engine.allocator, values);
    api.ClearBoundOutputs(binding.get());
    if (inputs.size() == 1) {  // which is another one at every run: nobody is served by keeping it
        api.ClearBoundInputs(binding.get());
        bound.clear();
    }
    return result;
}

void Tensor::download(float* data, std::size_t count) const {
    const auto info =
        made(api, api.ReleaseTensorTypeAndShapeInfo, "engine-run", "ONNX Runtime",
             [&](OrtTensorTypeAndShapeInfo** out) { return api.GetTensorTypeAndShape(value.get(), out); });
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    std::size_t found = 0;
    check(api, api.GetTensorElementType(info.get(), &type), "engine-run", "ONNX Runtime");
    check(api, api.GetTensorShapeElementCount(info.get(), &found), "engine-run", "ONNX Runtime");
    expect_floats(type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? found : 0, count);
    void* from = nullptr;
    check(api, api.GetTensorMutableData(value.get(), &from), "engine-run", "ONNX Runtime");
    std::memcpy(data, from, count * sizeof(float));
}

}  // namespace
}  // namespace posecrafter

PC_ENGINE_MODULE(posecrafter::OnnxRuntime, posecrafter::Graph, posecrafter::Tensor)
