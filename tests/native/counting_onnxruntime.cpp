// ONNX Runtime, the library that COUNTED names, with one function counted: binding an input, which is what copies it to
// the device that a graph runs on. At the end of the process the file COUNTS holds "<input> <times>" a line.
#include <dlfcn.h>
#include <onnxruntime/onnxruntime_c_api.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

namespace {

struct Counts {
    ~Counts() {
        std::ofstream out(std::getenv("COUNTS"));
        for (const auto& [input, number] : times) out << input << ' ' << number << '\n';
    }
    std::map<std::string, int> times;
} counts;

const OrtApiBase* real_base() {
    void* library = dlopen(std::getenv("COUNTED"), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    return reinterpret_cast<const OrtApiBase*(ORT_API_CALL*)()>(dlsym(library, "OrtGetApiBase"))();
}

const OrtApi* real = nullptr;
OrtApi counted{};

OrtStatus* ORT_API_CALL bind_input(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    ++counts.times[name];
    return real->BindInput(binding, name, value);
}

const OrtApi* ORT_API_CALL get_api(std::uint32_t version) noexcept {
    real = real_base()->GetApi(version);
    counted = *real;
    counted.BindInput = bind_input;
    return &counted;
}

const char* ORT_API_CALL get_version() noexcept {
    return real_base()->GetVersionString();
}

const OrtApiBase base{get_api, get_version};

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* ORT_API_CALL OrtGetApiBase() noexcept {
    return &base;
}
