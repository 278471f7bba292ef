// A list of files with their sizes and hashes, as manifests and packs hold it.
#pragma once

#include "fields.hpp"
#include "manifest.hpp"

namespace posecrafter {

// Throws Error `code` for anything but {"<path>": {"bytes": .., "sha256": ".."}, ..}. `where` names the object.
std::vector<FileEntry> read_entries(const Json& object, const std::string& where, const char* code);

}  // namespace posecrafter
