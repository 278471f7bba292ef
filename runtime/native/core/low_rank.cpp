#include "low_rank.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <string_view>
#include <vector>

#include "bundle.hpp"
#include "error.hpp"
#include "files.hpp"
#include "half.hpp"

namespace posecrafter {
namespace {

constexpr std::string_view down_end = ".lora_down.weight", up_end = ".lora_up.weight";

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
    throw Error(Kind::bundle, "pack-weights", path + what + "; export the person again");
}

// Every layer that has at least one of its two factors.
std::set<std::string> layers_of(const std::map<std::string, Stored>& tensors) {
    std::set<std::string> layers;
    for (const auto& [name, _] : tensors)
        for (const std::string_view end : {down_end, up_end})
            if (name.ends_with(end)) layers.insert(name.substr(0, name.size() - end.size()));
    return layers;
}

template <class Number>
Number number_at(const Stored& tensor, std::size_t index) {
    Number out;
    std::memcpy(&out, tensor.data.data() + index * sizeof out, sizeof out);
    return out;
}

bool is_float(const Stored& tensor) {
    return tensor.dtype == "F16" || tensor.dtype == "F32" || tensor.dtype == "F64";
}

std::vector<double> numbers_of(const Stored& tensor) {
    const std::size_t width = tensor.dtype == "F16" ? 2 : tensor.dtype == "F32" ? 4 : 8;
    std::vector<double> out(tensor.data.size() / width);
    for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = width == 2   ? double(from_half(number_at<std::uint16_t>(tensor, i)))
                 : width == 4 ? double(number_at<float>(tensor, i))
                              : number_at<double>(tensor, i);
    return out;
}

// Adds scale * up @ down to W, of halves or floats, and writes it to `out`. By way of float32, as in Python: halves
// would otherwise round differently now and then.
template <class Number, class Widen, class Narrow>
void add(const Stored& base, const std::vector<double>& down, const std::vector<double>& up, const LowRank& low_rank,
         char* out, Widen widen, Narrow narrow) {
    const auto rows = std::size_t(base.shape[0]), columns = std::size_t(base.shape[1]);
    const auto rank = std::size_t(low_rank.rank);
    std::vector<double> row(columns);
    for (std::size_t o = 0; o < rows; ++o) {
        std::fill(row.begin(), row.end(), 0.0);
        for (std::size_t r = 0; r < rank; ++r) {
            const double factor = up[o * rank + r];
            const double* other = down.data() + r * columns;
            for (std::size_t i = 0; i < columns; ++i) row[i] += factor * other[i];
        }
        for (std::size_t i = 0; i < columns; ++i, out += sizeof(Number)) {
            const double whole = widen(number_at<Number>(base, o * columns + i)) + low_rank.scale * row[i];
            const Number number = narrow(static_cast<float>(whole));
            std::memcpy(out, &number, sizeof number);
        }
    }
}

std::string product(const std::string& path, const std::string& layer, const Stored& base, const Stored& down,
                    const Stored& up, const LowRank& low_rank) {
    const std::vector<std::int64_t> thin{low_rank.rank, base.shape[1]}, tall{base.shape[0], low_rank.rank};
    if (down.shape != thin || up.shape != tall || !is_float(down) || !is_float(up))
        refuse(path, text(": ", layer, " has factors ", down.dtype, " ", shape_text(down.shape), " and ", up.dtype, " ",
                          shape_text(up.shape), ", its matrix takes ", shape_text(thin), " and ", shape_text(tall)));
    std::string out(base.data.size(), '\0');
    if (base.dtype == "F16")
        add<std::uint16_t>(base, numbers_of(down), numbers_of(up), low_rank, out.data(), from_half, to_half);
    else
        add<float>(
            base, numbers_of(down), numbers_of(up), low_rank, out.data(), [](float v) { return v; },
            [](float v) { return v; });
    return out;
}

}  // namespace

std::deque<std::string> multiply_out(std::map<std::string, Stored>& tensors, const LowRank& low_rank,
                                     const std::filesystem::path& base, const std::string& path) {
    const auto content = read_file(base);
    if (!content)
        throw Error(Kind::bundle, "bundle-person", base.string() + " cannot be read; export the bundle again");
    const auto matrices = find_tensors(*content, base.string(), "bundle-person");
    std::deque<std::string> made;
    for (const std::string& layer : layers_of(tensors)) {
        const std::string name = layer + ".weight";
        if (tensors.count(name)) refuse(path, text(" has ", name, " twice, in full and as factors"));
        const auto found = matrices.find(name);
        if (found == matrices.end()) refuse(path, text(" has ", name, " as factors, which the graphs do not"));
        const Stored& matrix = found->second;
        if (matrix.shape.size() != 2 || (matrix.dtype != "F16" && matrix.dtype != "F32"))
            throw Error(Kind::bundle, "bundle-person",
                        text(base.string(), ": ", name, " is ", matrix.dtype, " ", shape_text(matrix.shape),
                             " and no matrix of float16 or float32; export the bundle again"));
        const auto factor = [&](std::string_view end) {
            const auto held = tensors.extract(layer + std::string(end));
            if (held.empty()) refuse(path, text(" lacks ", layer, end));
            return held.mapped();
        };
        const Stored down = factor(down_end), up = factor(up_end);
        made.push_back(product(path, layer, matrix, down, up, low_rank));
        tensors[name] = {matrix.dtype, matrix.shape, made.back()};
    }
    return made;
}

}  // namespace posecrafter
