// Runs a reader on every file of a folder: for builds without libFuzzer, which brings a main of its own.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int count, char** words) {
    int read = 0;
    for (const auto& file : std::filesystem::directory_iterator(count > 1 ? words[1] : ".")) {
        std::ifstream in(file.path(), std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
        ++read;
    }
    std::printf("%d files\n", read);
    return read == 0;
}
