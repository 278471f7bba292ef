// libFuzzer on everything that is parsed from files: the first byte chooses the reader. A refusal is an Error; anything
// else that leaves a reader is a defect.
#include <cstdint>

#include "error.hpp"
#include "manifest.hpp"
#include "openpose.hpp"
#include "pack.hpp"
#include "tensors.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string_view content(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        switch (data[0] % 4) {
            case 0:
                posecrafter::Manifest::parse(content, "fuzz");
                break;
            case 1:
                posecrafter::parse_poses(content, "fuzz", posecrafter::Canvas{64, 64});
                break;
            case 2:
                posecrafter::Pack::parse(content, "fuzz");
                break;
            default:
                posecrafter::parse_tensors(content, "fuzz");
                break;
        }
    } catch (const posecrafter::Error&) {
    }
    return 0;
}
