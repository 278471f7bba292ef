// The safetensors format, read with the checks of its reference implementation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace posecrafter {

// A float32 tensor on the host, row-major.
struct Floats {
    std::vector<std::int64_t> shape;
    std::vector<float> values;
};

// A tensor where it lies in a file's bytes, which must outlive it. dtype: "F32", "F16", ...
struct Stored {
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::string_view data;
};

// Every tensor of a safetensors file by name. `name` stands for the file in errors.
// Throws Error `code` for bytes that are not a whole safetensors file, and for types that numpy lacks, as Python does.
std::map<std::string, Stored> find_tensors(std::string_view bytes, const std::string& name, const char* code);

// The tensors of a file by name, widened or narrowed to float32 (F64, F32, F16; others are left out).
// Throws Error "bundle-person" for anything that is not a whole safetensors file.
std::map<std::string, Floats> read_tensors(const std::filesystem::path& path);
// The same from bytes; `name` stands for the file in errors.
std::map<std::string, Floats> parse_tensors(std::string_view bytes, const std::string& name);

}  // namespace posecrafter
