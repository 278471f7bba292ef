#include "engine.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <string_view>

#include "error.hpp"

namespace posecrafter {
namespace {

namespace fs = std::filesystem;

constexpr std::array known{"native", "openvino", "onnxruntime", "tensorrt"};

bool multiplies_bfloat16() {
    std::ifstream cpuinfo("/proc/cpuinfo");
    for (std::string line; std::getline(cpuinfo, line);)
        if (line.rfind("flags", 0) == 0)
            return line.find("amx_bf16") != line.npos || line.find("avx512_bf16") != line.npos;
    return false;
}

// The instruction sets that native's kernels are written for; elsewhere it runs too, but others are faster.
bool has_own_kernels() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
    return true;
#else
    return false;
#endif
}

// The folder of the library that this code is in.
fs::path own_folder() {
    Dl_info found{};
    static const char inside = 0;
    return dladdr(&inside, &found) && found.dli_fname ? fs::absolute(found.dli_fname).parent_path() : fs::path();
}

fs::path module_path(const std::string& name) {
    if (name.find('/') != std::string::npos) return name;
    return own_folder() / "posecrafter" / ("engine_" + name + ".so");
}

const pc_engine_module* open_module(const std::string& name) {
    const fs::path path = module_path(name);
    const bool is_path = name.find('/') != std::string::npos;
    if (!is_path && std::find(known.begin(), known.end(), name) == known.end())
        throw Error(Kind::engine, "engine-unknown",
                    text("there is no engine '", name, "'; choose auto, native, onnxruntime, openvino or tensorrt"));
    // Engines' libraries keep threads and thread-local state; unloading them is not safe, so modules stay.
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle) {
        const char* why = dlerror();
        throw Error(Kind::engine, "engine-missing",
                    text("this build has no module for engine '", name, "' (", why ? why : path.string(), ")"));
    }
    const auto get = reinterpret_cast<pc_engine_module_function>(dlsym(handle, "pc_engine_module_v1"));
    const pc_engine_module* module = get ? get() : nullptr;
    if (!module || module->abi != PC_ENGINE_ABI)
        throw Error(Kind::engine, "engine-version",
                    text(path.string(), " is not an engine module of this release; install both from one build"));
    return module;
}

// Graphs as layers, not as ONNX.
bool reads_layers(const pc_engine_module& module) {
    return std::string_view(module.name) == "native";
}

[[noreturn]] void fail(const pc_engine_failure& failure) {
    throw Error(Kind::engine, failure.code, failure.message);
}

}  // namespace

Engine::Engine(const EngineOptions& options, const fs::path& folder, const Manifest& manifest)
    : engine_(nullptr, nullptr), folder_(folder) {
    for (const FileEntry& file : manifest.files) listed_.insert(file.name);
    if (options.name != "auto") open(options.name, options);
    std::string code, why;  // the first one's code: it is the one that would be taken
    for (const std::string& name : automatic(options)) {
        if (engine_) break;
        try {
            open(name, options);
        } catch (const Error& error) {
            if (code.empty()) code = error.code();
            why += text(why.empty() ? "" : "; ", name, ": ", error.what());
        }
    }
    if (!engine_) throw Error(Kind::engine, code, why);
}

// native where the bundle has layers and nothing is asked that another one gives. Then openvino pays where the
// processor multiplies bfloat16; elsewhere it is no faster and needs more memory.
std::vector<std::string> Engine::automatic(const EngineOptions& options) const {
    std::vector<std::string> names{"onnxruntime", "openvino"};
    if (multiplies_bfloat16()) std::swap(names[0], names[1]);
    const bool plain = options.library.empty() && (options.device.empty() || options.device == "cpu");
    if (plain && has_layers() && has_own_kernels()) names.insert(names.begin(), "native");
    return names;
}

void Engine::open(const std::string& name, const EngineOptions& options) {
    module_ = open_module(name);
    if (reads_layers(*module_) && !has_layers())
        throw Error(Kind::engine, "engine-load",
                    text(folder_.string(),
                         " holds no layers for engine 'native': it is of an earlier release; export it again, or take "
                         "onnxruntime"));
    const auto given = [](const std::string& value) { return value.empty() ? nullptr : value.c_str(); };
    const pc_engine_options raw{given(options.library), given(options.device), given(options.precision),
                                options.threads};
    pc_engine_failure failure{};
    engine_ = Handle(module_->open(&raw, &failure), module_->close);
    if (!engine_) fail(failure);
}

void* Engine::load(const std::string& graph) {
    if (const auto found = graphs_.find(graph); found != graphs_.end()) return found->second.get();
    const std::string ending = reads_layers(*module_) ? ".layers" : ".onnx";
    std::string stem = "graphs/" + graph + module_->variant(engine_.get());
    if (!listed_.count(stem + ending)) stem = "graphs/" + graph;
    if (!listed_.count(stem + ending))
        throw Error(Kind::engine, "engine-load",
                    text(folder_.string(), " has no graph '", graph, "'; export it again"));
    pc_engine_failure failure{};
    Handle loaded(module_->load(engine_.get(), (folder_ / stem).c_str(), &failure), module_->unload);
    if (!loaded) fail(failure);
    return graphs_.emplace(graph, std::move(loaded)).first->second.get();
}

Tensor Engine::owned(void* tensor, const pc_engine_failure& failure) {
    if (!tensor) fail(failure);
    return {tensor, module_->release};
}

Tensor Engine::upload(int type, const std::vector<std::int64_t>& shape, const void* data) {
    pc_engine_failure failure{};
    return owned(module_->upload(engine_.get(), type, data, shape.data(), shape.size(), &failure), failure);
}

Tensor Engine::upload(const std::vector<std::int64_t>& shape, const float* data) {
    return upload(PC_ENGINE_FLOAT32, shape, data);
}

Tensor Engine::upload(std::int64_t value) {
    return upload(PC_ENGINE_INT64, {1}, &value);
}

Bound::mapped_type Engine::take(const std::string& graph, const std::map<std::string, Weight>& weights) {
    Bound::mapped_type taken;
    if (!module_->pack) {
        for (const auto& [input, weight] : weights) taken[input] = upload(weight.type, weight.shape, weight.data);
        return taken;
    }
    void* loaded = load(graph);
    std::vector<pc_engine_weight> raw;
    for (const auto& [input, weight] : weights)
        raw.push_back({input.c_str(), weight.type, weight.data, weight.shape.data(), weight.shape.size()});
    pc_engine_failure failure{};
    taken[PC_ENGINE_PERSON] = owned(module_->pack(loaded, raw.data(), raw.size(), &failure), failure);
    return taken;
}

Tensor Engine::run(const std::string& graph, Inputs inputs, const Bound& bound, const char* output) {
    void* loaded = load(graph);
    const auto weights = bound.find(graph);
    std::vector<const char*> names;
    std::vector<void*> tensors;
    for (std::size_t i = 0; const char* name = module_->input(loaded, i); ++i) {
        const auto given = std::find_if(inputs.begin(), inputs.end(),
                                        [&](const auto& input) { return std::string_view(input.first) == name; });
        const Tensor* tensor = given == inputs.end() ? nullptr : given->second;
        if (!tensor && weights != bound.end())
            if (const auto own = weights->second.find(name); own != weights->second.end()) tensor = &own->second;
        if (!tensor)
            throw Error(Kind::engine, "engine-load",
                        text("graph '", graph, "' wants an input '", name,
                             "' that this release does not know; update posecrafter"));
        names.push_back(name);
        tensors.push_back(tensor->get());
    }
    pc_engine_failure failure{};
    return owned(module_->run(loaded, names.data(), tensors.data(), names.size(), output, &failure), failure);
}

void Engine::download(const Tensor& tensor, float* data, std::size_t count) {
    pc_engine_failure failure{};
    if (!module_->download(engine_.get(), tensor.get(), data, count, &failure)) fail(failure);
}

std::optional<std::uint64_t> Engine::memory(const pc_engine_pass& pass) const {
    if (!module_->memory) return std::nullopt;
    pc_engine_failure failure{};
    const std::uint64_t bytes = module_->memory(engine_.get(), (folder_ / "graphs").c_str(), &pass, &failure);
    if (!bytes) fail(failure);
    return bytes;
}

}  // namespace posecrafter
