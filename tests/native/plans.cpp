// What the comparison with Python asks: native_plans BUNDLE ENGINE VERSION DEVICE GRAPH [frames=9 h=16 ...]
// Prints the plan's file and the profile that takes a pass of these sizes, or the code of a refusal, and exits with 2.
#include "plans.hpp"

#include <cstdio>
#include <cstdlib>

#include "error.hpp"

int main(int count, char** values) {
    if (count < 6) return 1;
    posecrafter::Sizes sizes;
    for (int i = 6; i < count; ++i) {
        const std::string word = values[i];
        sizes[word.substr(0, word.find('='))] = std::strtoll(word.c_str() + word.find('=') + 1, nullptr, 10);
    }
    try {
        const posecrafter::Built built = posecrafter::find_built(values[1], values[2], values[3], values[4]);
        posecrafter::read_plan(built, values[5]);
        std::printf("%s/%s %d\n", built.folder.filename().c_str(), built.graphs.at(values[5]).file.c_str(),
                    posecrafter::choose_profile(built, values[5], sizes));
        return 0;
    } catch (const posecrafter::Error& error) {
        std::printf("%s\n", error.code().c_str());
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
