// OpenVINO: the fastest engine on a CPU, through its C interface. A graph is compiled for each size that a pass has.
#include <dlfcn.h>
#include <openvino/c/openvino.h>

#include <cstring>
#include <filesystem>
#include <list>
#include <string_view>

#include "module.hpp"

namespace posecrafter {
namespace {

// Above this much of weights a graph is compiled once, for any size: each compiled size holds weights of its own.
constexpr std::uintmax_t static_bytes = 1U << 30;
// OpenVINO's word for the precision of a denoiser's pass over one frame, whatever the others' is. Such a pass inverts
// the reference: every target starts from its result, so that its error is in all of them, and it is a small part of
// the work.
constexpr const char* inverted_in = "f32";
// Sizes of a graph that stay compiled: one frame, the pass, the chunk of decoding and its last.
constexpr std::size_t resident = 4;

// The functions of libopenvino_c.so that are used here, found by name.
struct Library {
    explicit Library(void* handle) : handle(handle) {}

    template <class Function>
    Function* find(const char* name) const {
        void* found = dlsym(handle, name);
        if (!found)
            throw Failure("engine-version",
                          std::string("OpenVINO's library has no ") + name + "; 2024.0 or later is needed");
        return reinterpret_cast<Function*>(found);
    }

#define PC_OPENVINO(name) decltype(::name)* name = find<decltype(::name)>(#name)
    void* handle;
    PC_OPENVINO(ov_core_create);
    PC_OPENVINO(ov_core_free);
    PC_OPENVINO(ov_core_get_property);
    PC_OPENVINO(ov_core_read_model);
    PC_OPENVINO(ov_core_compile_model);
    PC_OPENVINO(ov_model_free);
    PC_OPENVINO(ov_model_inputs_size);
    PC_OPENVINO(ov_model_outputs_size);
    PC_OPENVINO(ov_model_const_input_by_index);
    PC_OPENVINO(ov_model_const_output_by_index);
    PC_OPENVINO(ov_model_reshape);
    PC_OPENVINO(ov_port_get_any_name);
    PC_OPENVINO(ov_output_const_port_free);
    PC_OPENVINO(ov_partial_shape_create_static);
    PC_OPENVINO(ov_partial_shape_free);
    PC_OPENVINO(ov_compiled_model_create_infer_request);
    PC_OPENVINO(ov_compiled_model_free);
    PC_OPENVINO(ov_infer_request_set_tensor);
    PC_OPENVINO(ov_infer_request_get_output_tensor_by_index);
    PC_OPENVINO(ov_infer_request_infer);
    PC_OPENVINO(ov_infer_request_free);
    PC_OPENVINO(ov_tensor_create);
    PC_OPENVINO(ov_tensor_data);
    PC_OPENVINO(ov_tensor_free);
    PC_OPENVINO(ov_tensor_get_byte_size);
    PC_OPENVINO(ov_tensor_get_shape);
    PC_OPENVINO(ov_shape_free);
    PC_OPENVINO(ov_get_last_err_msg);
    PC_OPENVINO(ov_get_error_info);
    PC_OPENVINO(ov_free);
#undef PC_OPENVINO

    void check(ov_status_e status, const char* code, const std::string& what) const {
        if (status == OK) return;
        const char* told = ov_get_last_err_msg();
        std::string line = told && *told ? told : ov_get_error_info(status);
        // Messages open with OpenVINO's own source lines; the last line says what happened.
        while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
        if (const auto end = line.rfind('\n'); end != std::string::npos) line.erase(0, end + 1);
        throw Failure(code, what + ": " + line);
    }
};

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

struct Tensor {
    void download(float* data, std::size_t count) const;

    const Library& library;
    Owned<ov_tensor_t> tensor;
    Shape shape;
};

struct Graph;

struct OpenVino {
    static constexpr const char* name = "openvino";

    explicit OpenVino(const pc_engine_options& wanted);
    const char* device() const { return "cpu"; }
    const char* variant() const { return ""; }
    std::unique_ptr<Graph> load(const std::string& stem);
    std::unique_ptr<Tensor> upload(int type, const void* data, const Shape& shape);

    std::string precision;  // OpenVINO's word
    int threads;
    Library library;
    Owned<ov_core_t> core;
};

struct Compiled {
    std::vector<Shape> shapes;
    Owned<ov_compiled_model_t> model;
    Owned<ov_infer_request_t> request;
};

struct Graph {
    std::unique_ptr<Tensor> run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output);

    OpenVino& engine;
    std::string path;
    bool fixed;  // compiled for each size
    Owned<ov_model_t> model;
    std::vector<std::string> inputs, outputs;
    std::list<Compiled> compiled;  // the latest first
};

void* open_library(const char* path) {
    void* handle = dlopen(path ? path : "libopenvino_c.so", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle) return handle;
    const std::string why = dlerror();
    throw Failure("engine-missing",
                  "cannot open OpenVINO's library: " + why +
                      "; name libopenvino_c.so in engine_library (pip install openvino has one in openvino/libs)");
}

// Checked before the library is opened.
std::string precision_of(const pc_engine_options& wanted) {
    if (wanted.device && std::strcmp(wanted.device, "cpu") != 0)
        throw Failure("engine-device", std::string("OpenVINO runs on the cpu here, not on '") + wanted.device + "'");
    const std::string precision = wanted.precision ? wanted.precision : "fp32";
    if (precision != "fp32" && precision != "bf16")
        throw Failure("engine-precision",
                      "OpenVINO here computes in fp32 or bf16, not '" + precision + "'; name one of them");
    return precision == "fp32" ? "f32" : "bf16";
}

ov_core_t* make_core(const Library& library) {
    ov_core_t* core = nullptr;
    library.check(library.ov_core_create(&core), "engine-load", "OpenVINO does not start");
    return core;
}

OpenVino::OpenVino(const pc_engine_options& wanted)
    : precision(precision_of(wanted)),
      threads(wanted.threads),
      library(open_library(wanted.library)),
      core(make_core(library), library.ov_core_free) {
    if (precision != "bf16") return;
    char* able = nullptr;
    library.check(library.ov_core_get_property(core.get(), "CPU", "OPTIMIZATION_CAPABILITIES", &able), "engine-load",
                  "OpenVINO's CPU");
    const std::string words = able;
    library.ov_free(able);
    if (words.find("BF16") == std::string::npos)
        throw Failure("engine-precision", "this CPU has no bf16 arithmetic (OpenVINO reports " + words + "); use fp32");
}

std::string name_of(const Library& library, ov_output_const_port_t* raw) {
    const Owned<ov_output_const_port_t> port(raw, library.ov_output_const_port_free);
    char* name = nullptr;
    library.check(library.ov_port_get_any_name(raw, &name), "engine-load", "OpenVINO: a nameless tensor");
    std::string out = name;
    library.ov_free(name);
    return out;
}

std::uintmax_t size_of(const std::string& path) {
    std::error_code absent;
    const auto size = std::filesystem::file_size(path, absent);
    return absent ? 0 : size;
}

std::unique_ptr<Graph> OpenVino::load(const std::string& stem) {
    const std::string path = stem + ".onnx";
    ov_model_t* model = nullptr;
    library.check(library.ov_core_read_model(core.get(), path.c_str(), nullptr, &model), "engine-load",
                  "OpenVINO cannot read " + path);
    const bool fixed = size_of(path) + size_of(stem + ".weights") <= static_bytes;
    std::unique_ptr<Graph> graph(new Graph{*this, path, fixed, {model, library.ov_model_free}, {}, {}, {}});
    std::size_t inputs = 0, outputs = 0;
    library.check(library.ov_model_inputs_size(model, &inputs), "engine-load", path);
    library.check(library.ov_model_outputs_size(model, &outputs), "engine-load", path);
    ov_output_const_port_t* port = nullptr;
    for (std::size_t i = 0; i < inputs; ++i) {
        library.check(library.ov_model_const_input_by_index(model, i, &port), "engine-load", path);
        graph->inputs.push_back(name_of(library, port));
    }
    // Compiling may give an output the name of what it was merged with; its place stays.
    for (std::size_t i = 0; i < outputs; ++i) {
        library.check(library.ov_model_const_output_by_index(model, i, &port), "engine-load", path);
        graph->outputs.push_back(name_of(library, port));
    }
    return graph;
}

void reshape(const Graph& graph, const char* const* names, const std::vector<Shape>& shapes) {
    const Library& library = graph.engine.library;
    std::vector<ov_partial_shape_t> partial;
    std::vector<const char*> words;
    for (std::size_t i = 0; i < shapes.size(); ++i) {
        if (shapes[i].empty()) continue;  // a single number has one shape, and the C interface refuses to name it
        words.push_back(names[i]);
        library.check(
            library.ov_partial_shape_create_static(std::ssize(shapes[i]), shapes[i].data(), &partial.emplace_back()),
            "engine-load", "OpenVINO: a shape of " + graph.path);
    }
    const ov_status_e status =
        library.ov_model_reshape(graph.model.get(), words.data(), partial.data(), partial.size());
    for (ov_partial_shape_t& shape : partial) library.ov_partial_shape_free(&shape);
    library.check(status, "engine-load", "OpenVINO cannot reshape " + graph.path);
}

bool inverts(const Graph& graph, const char* const* names, const std::vector<Shape>& shapes) {
    if (!graph.fixed || std::filesystem::path(graph.path).stem() != "denoiser") return false;
    for (std::size_t i = 0; i < shapes.size(); ++i)
        if (std::string_view(names[i]) == "x") return shapes[i][0] == 1;
    return false;
}

Compiled compile(Graph& graph, const char* const* names, const std::vector<Shape>& shapes) {
    const OpenVino& engine = graph.engine;
    const Library& library = engine.library;
    if (graph.fixed) reshape(graph, names, shapes);
    ov_compiled_model_t* model = nullptr;
    const std::string threads = std::to_string(engine.threads);
    const char* precision = inverts(graph, names, shapes) ? inverted_in : engine.precision.c_str();
    // The last pair is left out where the number of threads is OpenVINO's choice.
    library.check(library.ov_core_compile_model(engine.core.get(), graph.model.get(), "CPU", engine.threads > 0 ? 6 : 4,
                                                &model, "PERFORMANCE_HINT", "LATENCY", "INFERENCE_PRECISION_HINT",
                                                precision, "INFERENCE_NUM_THREADS", threads.c_str()),
                  "engine-load", "OpenVINO cannot compile " + graph.path);
    Owned<ov_compiled_model_t> owned(model, library.ov_compiled_model_free);
    ov_infer_request_t* request = nullptr;
    library.check(library.ov_compiled_model_create_infer_request(model, &request), "engine-load", graph.path);
    return {shapes, std::move(owned), {request, library.ov_infer_request_free}};
}

ov_infer_request_t* request_for(Graph& graph, const char* const* names, const std::vector<Shape>& shapes) {
    auto& known = graph.compiled;
    for (auto place = known.begin(); place != known.end(); ++place)
        if (!graph.fixed || place->shapes == shapes) {
            known.splice(known.begin(), known, place);
            return known.front().request.get();
        }
    known.push_front(compile(graph, names, shapes));
    if (known.size() > resident) known.pop_back();
    return known.front().request.get();
}

std::unique_ptr<Tensor> make_tensor(const Library& library, ov_element_type_e type, const Shape& shape,
                                    const void* data) {
    ov_tensor_t* raw = nullptr;
    const ov_shape_t sides{std::ssize(shape), const_cast<std::int64_t*>(shape.data())};
    library.check(library.ov_tensor_create(type, sides, &raw), "engine-memory", "OpenVINO cannot allocate a tensor");
    std::unique_ptr<Tensor> tensor(new Tensor{library, {raw, library.ov_tensor_free}, shape});
    void* to = nullptr;
    std::size_t bytes = 0;
    library.check(library.ov_tensor_data(raw, &to), "engine-memory", "OpenVINO");
    library.check(library.ov_tensor_get_byte_size(raw, &bytes), "engine-memory", "OpenVINO");
    if (bytes > 0) std::memcpy(to, data, bytes);
    return tensor;
}

std::unique_ptr<Tensor> OpenVino::upload(int type, const void* data, const Shape& shape) {
    const auto word = type == PC_ENGINE_FLOAT16 ? F16 : type == PC_ENGINE_INT64 ? I64 : F32;
    return make_tensor(library, word, shape, data);
}

std::unique_ptr<Tensor> Graph::run(const char* const* names, const std::vector<Tensor*>& tensors, const char* output) {
    const Library& library = engine.library;
    std::vector<Shape> shapes;
    for (const Tensor* tensor : tensors) shapes.push_back(tensor->shape);
    ov_infer_request_t* request = request_for(*this, names, shapes);
    const std::string what = "OpenVINO failed in " + path;
    for (std::size_t i = 0; i < tensors.size(); ++i)
        library.check(library.ov_infer_request_set_tensor(request, names[i], tensors[i]->tensor.get()), "engine-run",
                      what);
    library.check(library.ov_infer_request_infer(request), "engine-run", what);
    std::size_t index = 0;
    while (index < outputs.size() && outputs[index] != output) ++index;
    ov_tensor_t* raw = nullptr;
    library.check(library.ov_infer_request_get_output_tensor_by_index(request, index, &raw), "engine-run", what);
    const Owned<ov_tensor_t> made(raw, library.ov_tensor_free);
    ov_shape_t sides{};
    library.check(library.ov_tensor_get_shape(raw, &sides), "engine-run", what);
    const Shape shape(sides.dims, sides.dims + sides.rank);
    library.ov_shape_free(&sides);
    std::size_t bytes = 0, numbers = 1;
    for (const std::int64_t side : shape) numbers *= static_cast<std::size_t>(side);
    library.check(library.ov_tensor_get_byte_size(raw, &bytes), "engine-run", what);
    expect_floats(bytes / sizeof(float), numbers);  // a graph of another precision returns another type
    void* data = nullptr;
    library.check(library.ov_tensor_data(raw, &data), "engine-run", what);
    // A copy: the request's own tensor is overwritten by the next run, whose input this one may be.
    return make_tensor(library, F32, shape, data);
}

void Tensor::download(float* data, std::size_t count) const {
    std::size_t bytes = 0;
    void* from = nullptr;
    library.check(library.ov_tensor_get_byte_size(tensor.get(), &bytes), "engine-run", "OpenVINO");
    expect_floats(bytes / sizeof(float), count);
    library.check(library.ov_tensor_data(tensor.get(), &from), "engine-run", "OpenVINO");
    std::memcpy(data, from, bytes);
}

}  // namespace
}  // namespace posecrafter

PC_ENGINE_MODULE(posecrafter::OpenVino, posecrafter::Graph, posecrafter::Tensor)
