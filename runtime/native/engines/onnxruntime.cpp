// ONNX Runtime: the portable default. The library is opened at run time, so any release from 1.21 on will do.
#include <dlfcn.h>
#include <onnxruntime/onnxruntime_c_api.h>

#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "failure.hpp"

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

template <class T>
using Owned = std::unique_ptr<T, void(ORT_API_CALL*)(T*)>;

struct OnnxRuntime {
    const OrtApi* api;
    std::string device;
    Owned<OrtEnv> env;
    Owned<OrtSessionOptions> options;
    OrtAllocator* allocator = nullptr;  // the default one; it is not ours
};

struct Graph {
    OnnxRuntime& engine;
    std::string name;
    Owned<OrtSession> session;
    std::vector<std::string> inputs;
};

struct Value {
    const OrtApi* api;
    OrtValue* value;
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

OnnxRuntime* make_engine(const pc_engine_options& wanted) {
    const std::string device = wanted.device ? wanted.device : "cpu";
    if (device != "cpu" && device != "cuda" && device != "tensorrt")
        throw Failure("engine-device", "ONNX Runtime runs on cpu, cuda or tensorrt, not on '" + device + "'");
    if (wanted.precision)
        throw Failure("engine-precision",
                      "ONNX Runtime computes in the bundle's own precision; leave precision out, or take openvino");
    const OrtApi& api = open_library(wanted.library);
    OrtEnv* env = nullptr;
    check(api, api.CreateEnv(ORT_LOGGING_LEVEL_ERROR, "posecrafter", &env), "engine-load",
          "ONNX Runtime does not start");
    auto engine =
        std::make_unique<OnnxRuntime>(OnnxRuntime{&api, device, Owned<OrtEnv>(env, api.ReleaseEnv),
                                                  Owned<OrtSessionOptions>(nullptr, api.ReleaseSessionOptions)});
    OrtSessionOptions* options = nullptr;
    check(api, api.CreateSessionOptions(&options), "engine-load", "ONNX Runtime has no session options");
    engine->options.reset(options);
    if (wanted.threads > 0)
        check(api, api.SetIntraOpNumThreads(options, wanted.threads), "engine-load", "ONNX Runtime's threads");
    if (device == "tensorrt") add_tensorrt(api, options);
    if (device != "cpu") add_cuda(api, options);
    check(api, api.GetAllocatorWithDefaultOptions(&engine->allocator), "engine-load", "ONNX Runtime has no allocator");
    return engine.release();
}

Graph* load_graph(OnnxRuntime& engine, const std::string& stem) {
    const OrtApi& api = *engine.api;
    const std::string path = stem + ".onnx";
    OrtSession* session = nullptr;
    check(api, api.CreateSession(engine.env.get(), path.c_str(), engine.options.get(), &session), "engine-load",
          "ONNX Runtime cannot load " + path);
    auto graph = std::make_unique<Graph>(Graph{engine, path, Owned<OrtSession>(session, api.ReleaseSession), {}});
    std::size_t count = 0;
    check(api, api.SessionGetInputCount(session, &count), "engine-load", path);
    for (std::size_t i = 0; i < count; ++i) {
        char* name = nullptr;
        check(api, api.SessionGetInputName(session, i, engine.allocator, &name), "engine-load", path);
        graph->inputs.emplace_back(name);
        engine.allocator->Free(engine.allocator, name);
    }
    return graph.release();
}

struct Type {
    ONNXTensorElementDataType word;
    std::size_t bytes;
};

Type type_of(int type) {
    if (type == PC_ENGINE_FLOAT16) return {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2};
    if (type == PC_ENGINE_INT64) return {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, sizeof(std::int64_t)};
    return {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, sizeof(float)};
}

Value* upload(OnnxRuntime& engine, int type, const void* data, const std::int64_t* shape, std::size_t rank) {
    const OrtApi& api = *engine.api;
    const Type wanted = type_of(type);
    OrtValue* value = nullptr;
    check(api, api.CreateTensorAsOrtValue(engine.allocator, shape, rank, wanted.word, &value), "engine-memory",
          "ONNX Runtime cannot allocate a tensor");
    Owned<OrtValue> owned(value, api.ReleaseValue);
    void* to = nullptr;
    check(api, api.GetTensorMutableData(value, &to), "engine-memory", "ONNX Runtime has no memory for a tensor");
    std::size_t size = wanted.bytes;
    for (std::size_t i = 0; i < rank; ++i) size *= static_cast<std::size_t>(shape[i]);
    std::memcpy(to, data, size);
    auto* out = new Value{&api, value};
    owned.release();
    return out;
}

Value* run(Graph& graph, const char* const* names, void* const* inputs, std::size_t count, const char* output) {
    const OrtApi& api = *graph.engine.api;
    std::vector<const OrtValue*> values;
    for (std::size_t i = 0; i < count; ++i) values.push_back(static_cast<const Value*>(inputs[i])->value);
    OrtValue* result = nullptr;
    check(api, api.Run(graph.session.get(), nullptr, names, values.data(), count, &output, 1, &result), "engine-run",
          "ONNX Runtime failed in " + graph.name);
    Owned<OrtValue> owned(result, api.ReleaseValue);
    auto* out = new Value{&api, result};
    owned.release();
    return out;
}

void download(const Value& tensor, float* data, std::size_t count) {
    const OrtApi& api = *tensor.api;
    OrtTensorTypeAndShapeInfo* raw = nullptr;
    check(api, api.GetTensorTypeAndShape(tensor.value, &raw), "engine-run", "ONNX Runtime");
    const Owned<OrtTensorTypeAndShapeInfo> info(raw, api.ReleaseTensorTypeAndShapeInfo);
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    std::size_t found = 0;
    check(api, api.GetTensorElementType(raw, &type), "engine-run", "ONNX Runtime");
    check(api, api.GetTensorShapeElementCount(raw, &found), "engine-run", "ONNX Runtime");
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || found != count)
        throw Failure("engine-run", "a graph returned " + std::to_string(found) + " numbers of type " +
                                        std::to_string(type) + ", expected " + std::to_string(count) +
                                        " of float32; export the bundle again");
    void* from = nullptr;
    check(api, api.GetTensorMutableData(tensor.value, &from), "engine-run", "ONNX Runtime");
    std::memcpy(data, from, count * sizeof(float));
}

const pc_engine_module module{
    .abi = PC_ENGINE_ABI,
    .name = "onnxruntime",
    .open = [](const pc_engine_options* options, pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-load", [&]() -> void* { return make_engine(*options); });
    },
    .close = [](void* engine) { delete static_cast<OnnxRuntime*>(engine); },
    .device = [](void* engine) { return static_cast<OnnxRuntime*>(engine)->device.c_str(); },
    .variant = [](void* engine) { return static_cast<OnnxRuntime*>(engine)->device == "cpu" ? ".cpu" : ""; },
    .load = [](void* engine, const char* path, pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-load",
                       [&]() -> void* { return load_graph(*static_cast<OnnxRuntime*>(engine), path); });
    },
    .unload = [](void* graph) { delete static_cast<Graph*>(graph); },
    .input = [](void* graph, std::size_t index) -> const char* {
        const auto& inputs = static_cast<Graph*>(graph)->inputs;
        return index < inputs.size() ? inputs[index].c_str() : nullptr;
    },
    .upload = [](void* engine, int type, const void* data, const std::int64_t* shape, std::size_t rank,
                 pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-memory",
                       [&]() -> void* { return upload(*static_cast<OnnxRuntime*>(engine), type, data, shape, rank); });
    },
    .run = [](void* graph, const char* const* names, void* const* inputs, std::size_t count, const char* output,
              pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-run",
                       [&]() -> void* { return run(*static_cast<Graph*>(graph), names, inputs, count, output); });
    },
    .download = [](void*, void* tensor, float* data, std::size_t count, pc_engine_failure* failure) -> int {
        return guarded(failure, "engine-run", [&] { return download(*static_cast<Value*>(tensor), data, count), 1; });
    },
    .release =
        [](void* tensor) {
            auto* value = static_cast<Value*>(tensor);
            value->api->ReleaseValue(value->value);
            delete value;
        },
};

}  // namespace
}  // namespace posecrafter

extern "C" __attribute__((visibility("default"))) const pc_engine_module* pc_engine_module_v1() {
    return &posecrafter::module;
}
