// The index of a graph's layers, and the graph that is made of it, on any bytes. A refusal is a LayersError; anything
// else that leaves the reader is a defect. The index is a file `fuzz.layers`, which may name itself for its weights.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>

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
    const fs::path stem = folder.path / "fuzz";
    std::ofstream(stem.string() + ".layers", std::ios::binary)
        .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
    try {
        posecrafter::cpu::make_graph(machine, posecrafter::cpu::Layers(stem));
    } catch (const posecrafter::cpu::LayersError&) {
    }
    return 0;
}
