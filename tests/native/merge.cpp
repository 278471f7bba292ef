// What a low-rank pack is made into:
//     native_merge WEIGHTS BASE RANK SCALE OUT
// writes the bytes of every tensor to OUT, in the order of their names. Prints the code of a refusal and exits with 2.
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "error.hpp"
#include "files.hpp"
#include "low_rank.hpp"

int main(int count, char** words) {
    if (count != 6) return 1;
    const auto content = posecrafter::read_file(words[1]);
    if (!content) return 1;
    try {
        auto tensors = posecrafter::find_tensors(*content, words[1], "pack-weights");
        const posecrafter::LowRank low_rank{std::atoi(words[3]), std::strtod(words[4], nullptr)};
        const auto made = posecrafter::multiply_out(tensors, low_rank, words[2], words[1]);
        std::ofstream out(words[5], std::ios::binary);
        for (const auto& [_, tensor] : tensors)
            out.write(tensor.data.data(), static_cast<std::streamsize>(tensor.data.size()));
        return out ? 0 : 1;
    } catch (const posecrafter::Error& error) {
        std::printf("%s\n", error.code().c_str());
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
