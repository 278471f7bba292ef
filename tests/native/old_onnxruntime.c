/* ONNX Runtime's door as a release has it that knows no interface as new as ours. */
#include <stddef.h>
#include <stdint.h>

static const void* get_api(uint32_t version) {
    return version > 3 ? NULL : "an old interface";
}
static const char* get_version(void) {
    return "1.3.0";
}

static const struct {
    const void* (*get_api)(uint32_t version);
    const char* (*get_version)(void);
} base = {get_api, get_version};

__attribute__((visibility("default"))) const void* OrtGetApiBase(void) {
    return &base;
}
