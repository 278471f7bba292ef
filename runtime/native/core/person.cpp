#include "person.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "error.hpp"
#include "files.hpp"
#include "low_rank.hpp"

namespace posecrafter {
namespace {

using Tensors = std::map<std::string, Stored>;

// Every tensor that a weights file must hold, "<graph>/<input>", and its shape.
InputShapes wanted_by(const Manifest& manifest) {
    InputShapes wanted;
    for (const auto& [graph, inputs] : manifest.shared)
        for (const auto& [input, shape] : inputs) wanted[graph + "/" + input] = shape;
    return wanted;
}

template <class Word, class Finite>
bool all_finite(std::string_view data, Finite finite) {
    for (std::size_t at = 0; at < data.size(); at += sizeof(Word)) {
        Word word;
        std::memcpy(&word, data.data() + at, sizeof word);
        if (!finite(word)) return false;
    }
    return true;
}

bool is_finite(const Stored& tensor) {
    if (tensor.dtype == "F16")
        return all_finite<std::uint16_t>(tensor.data, [](std::uint16_t bits) { return (bits & 0x7C00U) != 0x7C00U; });
    return all_finite<float>(tensor.data, [](float value) { return std::isfinite(value); });
}

// Throws Error "pack-weights" unless the file holds what the graphs take, and nothing else.
void check(const Tensors& tensors, const InputShapes& wanted, const std::string& dtype, const std::string& path) {
    const auto refuse = [&](const std::string& what) {
        throw Error(Kind::bundle, "pack-weights", path + what + "; export the person again");
    };
    std::set<std::string> names;
    for (const auto& [name, _] : wanted) names.insert(name);
    for (const auto& [name, _] : tensors) names.insert(name);
    for (const std::string& name : names) {
        if (!tensors.count(name)) refuse(" lacks " + name);
        if (!wanted.count(name)) refuse(" has a tensor that the graphs do not know: " + name);
    }
    for (const auto& [name, tensor] : tensors) {
        const std::vector<std::int64_t>& shape = wanted.at(name);
        if (tensor.shape != shape || tensor.dtype != dtype)
            refuse(text(": ", name, " is ", tensor.dtype, " ", shape_text(tensor.shape), ", the graphs take ", dtype,
                        " ", shape_text(shape)));
        if (!is_finite(tensor))
            throw Error(Kind::bundle, "pack-weights",
                        text(path, ": ", name, " holds values that are not finite; tune the person again"));
    }
}

}  // namespace

Bundle read_person(const Bundle& own, const Pack& pack, const std::filesystem::path& folder) {
    if (pack.base_sha256 != own.manifest.base_sha256)
        throw Error(Kind::bundle, "pack-base",
                    text(folder.string(), " belongs to the base ", pack.base_sha256.substr(0, 12), ", the bundle to ",
                         own.manifest.base_sha256.substr(0, 12),
                         "; export the person into this bundle, or open the other one"));
    Manifest manifest = own.manifest;
    manifest.training_frames = pack.training_frames;
    manifest.fps = pack.fps;
    manifest.prompt = pack.prompt;
    manifest.width = pack.width;
    manifest.height = pack.height;
    return Bundle::with_person(own.folder, manifest, folder);
}

Bound upload_weights(Engine& engine, const std::filesystem::path& path, const Bundle& bundle,
                     const std::optional<LowRank>& low_rank) {
    const Manifest& manifest = bundle.manifest;
    const auto content = read_file(path);
    if (!content) throw Error(Kind::bundle, "pack-weights", path.string() + " cannot be read; export the person again");
    Tensors tensors = find_tensors(*content, path.string(), "pack-weights");
    std::deque<std::string> made;
    if (low_rank) {
        if (!manifest.lists(base_file))
            throw Error(Kind::bundle, "bundle-file-missing",
                        text("the bundle has no ", base_file, ", which ", path.string(),
                             " builds on; export the bundle again, or the person with --full-matrices"));
        made = multiply_out(tensors, *low_rank, bundle.folder / base_file, path.string());
    }
    const bool half = manifest.precision == "fp16";
    check(tensors, wanted_by(manifest), half ? "F16" : "F32", path.string());
    Bound bound;
    for (const auto& [graph, inputs] : manifest.shared) {
        std::map<std::string, Weight> weights;
        for (const auto& [input, shape] : inputs)
            weights[input] = {half ? PC_ENGINE_FLOAT16 : PC_ENGINE_FLOAT32, shape,
                              tensors.at(graph + "/" + input).data.data()};
        bound[graph] = engine.take(graph, weights);
    }
    return bound;
}

}  // namespace posecrafter
