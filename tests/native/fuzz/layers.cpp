// The index of a graph's layers, and the graph that is made of it, on any bytes. A refusal is a LayersError; anything
// else that leaves the reader is a defect. The index is a file `fuzz.layers`, which may name itself for its weights. Of
// a shared one a person's weights are those that the seeds take, as they say there, of zeros.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "graphs.hpp"

namespace {

namespace fs = std::filesystem;

struct Folder {
    Folder() {
        std::string name = (fs::temp_directory_path() / "posecrafter-XXXXXX").string();
        path = mkdtemp(name.data());
    }
    ~Folder() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
    fs::path path;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Folder folder;
    static posecrafter::cpu::Machine machine(1, false);
    static const std::vector<float> zeros(144);
    static const std::vector<posecrafter::cpu::Weight> person{{"blocks.0.weight", {4, 4, 3, 3}, zeros.data(), false},
                                                              {"blocks.0.bias", {4}, zeros.data(), false}};
    const fs::path stem = folder.path / "fuzz";
    std::ofstream(stem.string() + ".layers", std::ios::binary)
        .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
    try {
        const posecrafter::cpu::Layers layers(stem);
        posecrafter::cpu::make_graph(machine, layers.shared() ? layers.with(person) : layers);
    } catch (const posecrafter::cpu::LayersError&) {
    }
    return 0;
}
