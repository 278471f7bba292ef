#include "layers.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <locale>
#include <sstream>
#include <string_view>
#include <utility>

namespace posecrafter::cpu {

namespace {

constexpr const char* kFormat = "posecrafter layers 1";
constexpr std::size_t kAlignment = 64, kMostDimensions = 4, kShown = 200;
constexpr double kMostWhole = 1 << 24;

float from_half(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    float value;
    if (rest < 0x400u) {  // zero and what is smaller than the normal numbers
        value = static_cast<float>(rest) * 0x1p-24f;
    } else {
        const std::uint32_t wide = rest >= 0x7c00u ? rest << 13 | 0x7f800000u : (rest << 13) + (112u << 23);
        std::memcpy(&value, &wide, sizeof value);
    }
    return sign ? -value : value;
}

/* A file's pages that were read need not stay in this process's memory: who reads them again gets them again. */
void let_go(const Tensor& tensor) {
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto data = reinterpret_cast<std::uintptr_t>(tensor.data), begin = data / page * page;
    madvise(reinterpret_cast<void*>(begin), data + tensor.count() * (tensor.half ? 2 : 4) - begin, MADV_DONTNEED);
}

}  // namespace

Mapped::Mapped(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat about{};
    if (file < 0 || fstat(file, &about) != 0 || about.st_size == 0) {
        if (file >= 0) close(file);
        throw LayersError("cannot read " + path);
    }
    size_ = static_cast<std::size_t>(about.st_size);
    void* data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (data == MAP_FAILED) throw LayersError("cannot map " + path);
    data_ = static_cast<const char*>(data);
}

Mapped::Mapped(Mapped&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapped::~Mapped() {
    if (data_) munmap(const_cast<char*>(data_), size_);
}

std::size_t Tensor::count() const {
    std::size_t count = 1;
    for (int size : sizes) count *= static_cast<std::size_t>(size);
    return count;
}

void Tensor::read(std::size_t first, std::size_t numbers, float* out) const {
    if (!half) {
        std::memcpy(out, static_cast<const char*>(data) + 4 * first, 4 * numbers);
        return;
    }
    const char* from = static_cast<const char*>(data) + 2 * first;
    for (std::size_t i = 0; i < numbers; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, from + 2 * i, 2);
        out[i] = from_half(bits);
    }
}

void Tensor::rows(int begin, int some, float* out) const {
    const std::size_t rows = static_cast<std::size_t>(sizes.empty() ? 1 : sizes[0]), columns = count() / rows;
    const std::size_t from = static_cast<std::size_t>(begin), wanted = static_cast<std::size_t>(some);
    if (!transposed) return read(from * columns, wanted * columns, out);
    std::vector<float> column(wanted);
    for (std::size_t i = 0; i < columns; ++i) {
        read(i * rows + from, wanted, column.data());
        for (std::size_t row = 0; row < wanted; ++row) out[row * columns + i] = column[row];
    }
}

Floats Tensor::floats() const {
    Floats out = make_floats(count());
    rows(0, sizes.empty() ? 1 : sizes[0], out.get());
    return out;
}

Layers::Layers(const std::string& stem)
    : path_(stem + ".layers"), packed_(std::make_shared<decltype(packed_)::element_type>()) {
    const std::string folder = path_.substr(0, path_.find_last_of('/') + 1);
    const Mapped& own = *files_.emplace("-", std::make_shared<Mapped>(path_)).first->second;
    const std::string_view all(own.data(), own.size());
    const auto next = [&](std::size_t& place) {
        const std::size_t begin = place, end = all.find('\n', begin);
        if (end == all.npos) throw LayersError(path_ + " is cut short; export the bundle again");
        place = end + 1;
        return all.substr(begin, end - begin);
    };
    std::size_t place = 0;
    bool ours = next(start_) == kFormat;
    const std::size_t first = start_;
    while (ours && !next(start_).starts_with("data")) continue;
    ours = ours && start_ % kAlignment == 0;
    if (!ours) throw LayersError(path_ + " is not of the format '" + kFormat + "'; export the bundle again");
    for (place = first; place < start_;) read_line(std::string(next(place)), folder);
}

void Layers::read_line(const std::string& line, const std::string& folder) {
    std::istringstream words(line);
    words.imbue(std::locale::classic());  // numbers as they are written, whatever the host's language
    std::string kind, name;
    words >> kind >> name;
    bool sound = true;
    if (kind == "graph") graph_ = name;
    if (kind == "number") {
        double value = 0;
        sound = words >> value && numbers_.emplace(name, value).second;
    }
    if (kind == "tensor" || kind == "input") {
        std::optional<Tensor> tensor = kind == "input" ? read_input(words) : read_tensor(words, folder);
        sound = tensor && tensors_.emplace(name, std::move(*tensor)).second;
    }
    if (!sound)
        throw LayersError(path_ + ": '" + line.substr(0, kShown) + "' says nothing sound; export the bundle again");
}

std::optional<Tensor> Layers::read_tensor(std::istream& words, const std::string& folder) {
    std::string type, file, order;
    std::size_t offset = 0, bytes = 0, rank = 0;
    words >> type >> file >> offset >> bytes >> order >> rank;
    if (!words || rank > kMostDimensions || (type != "f32" && type != "f16")) return {};
    if (file.find_first_of(std::string_view("/\0", 2)) != file.npos) return {};
    if ((order != "plain" && order != "transposed") || (order == "transposed" && rank != 2)) return {};
    Tensor tensor{std::vector<int>(rank), nullptr, type == "f16", order == "transposed"};
    if (!files_.contains(file)) files_.emplace(file, std::make_shared<Mapped>(folder + file));
    const Mapped& from = *files_.at(file);
    std::size_t room = from.size();
    if (file == "-") room -= start_;
    std::size_t count = 1;  // never more than there is room for, so that no product overflows
    for (int& size : tensor.sizes) {
        if (!(words >> size) || size < 1 || static_cast<std::size_t>(size) > room / count) return {};
        count *= static_cast<std::size_t>(size);
    }
    if (bytes != count * (tensor.half ? 2 : 4) || offset > room || bytes > room - offset) return {};
    if (!(words >> std::ws).eof()) return {};
    tensor.data = from.data() + (from.size() - room) + offset;
    return tensor;
}

std::optional<Tensor> Layers::read_input(std::istream& words) const {
    std::string type, input;
    std::size_t rank = 0;
    words >> type >> input >> rank;
    if (!words || rank > kMostDimensions || (type != "f32" && type != "f16")) return {};
    Tensor tensor{std::vector<int>(rank), nullptr, type == "f16", false, input};
    int room = INT_MAX;
    for (int& size : tensor.sizes) {
        if (!(words >> size) || size < 1 || size > room) return {};
        room /= size;
    }
    if (!(words >> std::ws).eof()) return {};
    return tensor;
}

bool Layers::shared() const {
    return std::any_of(tensors_.begin(), tensors_.end(), [](const auto& one) { return !one.second.input.empty(); });
}

std::vector<Weight> Layers::persons() const {
    std::vector<Weight> wanted;
    for (const auto& [name, tensor] : tensors_)
        if (!tensor.input.empty()) wanted.push_back({tensor.input, tensor.sizes, nullptr, tensor.half});
    return wanted;
}

Layers Layers::with(const std::vector<Weight>& weights) const {
    std::map<std::string_view, const Weight*> given;
    for (const Weight& weight : weights) given[weight.input] = &weight;
    Layers made = *this;
    for (auto& [name, tensor] : made.tensors_) {
        if (tensor.input.empty()) continue;
        const auto found = given.find(tensor.input);
        if (found == given.end())
            throw LayersError("graph '" + graph_ + "' is not given a person's " + tensor.input +
                              "; export the person again");
        const Weight& weight = *found->second;
        if (weight.sizes != tensor.sizes || weight.half != tensor.half)
            throw LayersError("a person's " + tensor.input + " is another than " + path_ +
                              " says; export the person again");
        tensor.data = weight.data;
    }
    return made;
}

std::shared_ptr<const Weights> Layers::weights(const std::vector<std::string>& names,
                                               const std::function<Weights()>& pack) const {
    std::string all;
    std::vector<const Tensor*> parts;
    for (const std::string& name : names) {
        all += name + " ";
        for (const char* part : {".weight", ".bias"})
            if (const auto found = tensors_.find(name + part); found != tensors_.end()) parts.push_back(&found->second);
    }
    const auto personal = [](const Tensor* part) { return !part->input.empty(); };
    if (std::any_of(parts.begin(), parts.end(), personal)) return std::make_shared<const Weights>(pack());
    std::shared_ptr<const Weights>& kept = (*packed_)[all];
    if (!kept) {
        kept = std::make_shared<const Weights>(pack());
        for (const Tensor* part : parts) let_go(*part);
    }
    return kept;
}

double Layers::number(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) throw LayersError(path_ + " lacks the number " + name + "; export the bundle again");
    return found->second;
}

int Layers::whole(const std::string& name) const {
    const double value = number(name);
    if (!(std::abs(value) <= kMostWhole) || value != std::trunc(value))
        throw LayersError(path_ + ": the number " + name + " is not whole, or too large; export the bundle again");
    return static_cast<int>(value);
}

const Tensor& Layers::tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw LayersError(path_ + " lacks the tensor " + name + "; export the bundle again");
    if (!found->second.data) throw LayersError(path_ + ": " + name + " is a person's, and none is given");
    return found->second;
}

}  // namespace posecrafter::cpu
