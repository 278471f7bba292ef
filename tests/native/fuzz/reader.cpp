// One of the readers of files, whichever READER names, on any bytes. A refusal is an Error; anything else that leaves a
// reader is a defect. libFuzzer calls it, or replay.cpp.
#include <cstdint>

#include "error.hpp"
#include "manifest.hpp"
#include "openpose.hpp"
#include "pack.hpp"
#include "tensors.hpp"

namespace {

[[maybe_unused]] void manifest(std::string_view content) {
    posecrafter::Manifest::parse(content, "fuzz");
}

[[maybe_unused]] void poses(std::string_view content) {
    posecrafter::parse_poses(content, "fuzz");
    posecrafter::parse_poses(content, "fuzz", posecrafter::Canvas{64, 64});
}

[[maybe_unused]] void pack(std::string_view content) {
    posecrafter::Pack::parse(content, "fuzz");
}

[[maybe_unused]] void tensors(std::string_view content) {
    posecrafter::parse_tensors(content, "fuzz");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        READER({reinterpret_cast<const char*>(data), size});
    } catch (const posecrafter::Error&) {
    }
    return 0;
}
