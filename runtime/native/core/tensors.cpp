#include "tensors.hpp"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "files.hpp"
#include "half.hpp"

namespace posecrafter {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t longest_header = 100'000'000;
constexpr const char* person_code = "bundle-person";

struct Entry {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t begin = 0, end = 0, count = 1;
};

// Refuses one file, by one code.
struct Refusal {
    const std::string& name;
    const char* code;

    [[noreturn]] void operator()(const std::string& why) const {
        throw Error(Kind::bundle, code, text(name, " is not a safetensors file (", why, "); export it again"));
    }
};

std::uint64_t width_of(const std::string& dtype) {
    if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
    if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
    if (dtype == "F16" || dtype == "I16" || dtype == "U16") return 2;
    if (dtype == "I8" || dtype == "U8" || dtype == "BOOL") return 1;
    return 0;
}

Entry entry_of(const Refusal& refuse, const std::string& key, const Json& item, std::uint64_t limit) {
    Entry out{key, "", {}};
    try {
        out.dtype = item.at("dtype").get<std::string>();
        for (const Json& side : item.at("shape")) {
            if (!side.is_number_unsigned()) refuse("a shape of " + key + " is not a list of sizes");
            out.shape.push_back(side.get<std::int64_t>());
            if (out.shape.back() < 0 || __builtin_mul_overflow(out.count, std::uint64_t(out.shape.back()), &out.count))
                refuse(key + " is too large");
        }
        const Json& offsets = item.at("data_offsets");
        if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
            refuse("bad offsets of " + key);
        out.begin = offsets[0].get<std::uint64_t>();
        out.end = offsets[1].get<std::uint64_t>();
    } catch (const Json::exception& error) {
        refuse(key + ": " + error.what());
    }
    std::uint64_t bytes = 0;
    const std::uint64_t width = width_of(out.dtype);
    if (width == 0) refuse(key + " has the unknown type " + out.dtype);
    if (__builtin_mul_overflow(out.count, width, &bytes) || out.begin > out.end || out.end > limit ||
        out.end - out.begin != bytes)
        refuse("the offsets of " + key + " do not fit its shape");
    return out;
}

template <class Word, class Convert>
void widen(const char* data, std::vector<float>& out, Convert convert) {
    for (std::size_t i = 0; i < out.size(); ++i) {
        Word word;
        std::memcpy(&word, data + i * sizeof(Word), sizeof(Word));
        out[i] = convert(word);
    }
}

}  // namespace

std::map<std::string, Stored> find_tensors(std::string_view bytes, const std::string& name, const char* code) {
    const Refusal refuse{name, code};
    std::uint64_t length = 0;
    if (bytes.size() < sizeof length) refuse("it is too short for a header");
    std::memcpy(&length, bytes.data(), sizeof length);  // little-endian, as every machine this is built for
    if (length > longest_header || length > bytes.size() - sizeof length) refuse("the header's length is wrong");
    const std::string_view header = bytes.substr(sizeof length, length), data = bytes.substr(sizeof length + length);
    const Json raw = header.starts_with('{') ? Json::parse(header, nullptr, false) : Json();
    if (!raw.is_object()) refuse("the header is not JSON");
    std::vector<Entry> entries;
    for (const auto& [key, item] : raw.items())
        if (key != "__metadata__") entries.push_back(entry_of(refuse, key, item, data.size()));
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    std::uint64_t end = 0;
    std::map<std::string, Stored> out;
    for (Entry& entry : entries) {
        if (entry.begin != end) refuse("there is a hole or an overlap before " + entry.name);
        end = entry.end;
        out[entry.name] = {entry.dtype, std::move(entry.shape), data.substr(entry.begin, entry.end - entry.begin)};
    }
    if (end != data.size()) refuse("bytes are left after the last tensor");
    return out;
}

std::map<std::string, Floats> parse_tensors(std::string_view bytes, const std::string& name) {
    std::map<std::string, Floats> out;
    for (auto& [key, stored] : find_tensors(bytes, name, person_code)) {
        if (stored.dtype[0] != 'F') continue;
        Floats tensor{stored.shape, std::vector<float>(stored.data.size() / width_of(stored.dtype))};
        const char* start = stored.data.data();
        if (stored.dtype == "F32") widen<float>(start, tensor.values, [](float v) { return v; });
        if (stored.dtype == "F64") widen<double>(start, tensor.values, [](double v) { return static_cast<float>(v); });
        if (stored.dtype == "F16") widen<std::uint16_t>(start, tensor.values, from_half);
        out.emplace(key, std::move(tensor));
    }
    return out;
}

std::map<std::string, Floats> read_tensors(const std::filesystem::path& path) {
    const auto content = read_file(path);
    if (!content) Refusal{path.string(), person_code}("it cannot be read");
    return parse_tensors(*content, path.string());
}

}  // namespace posecrafter
