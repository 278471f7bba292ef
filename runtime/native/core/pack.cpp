#include "pack.hpp"

#include <algorithm>

#include "entries.hpp"
#include "files.hpp"
#include "sha256.hpp"

namespace posecrafter {
namespace {

namespace fs = std::filesystem;

constexpr const char* format = "posecrafter-pack-1";
constexpr const char* low_rank_format = "posecrafter-pack-low-rank-1";
constexpr const char* record = "person.json";

bool is_file(const fs::path& path) {
    std::error_code ignored;
    return fs::is_regular_file(path, ignored);
}

// Who is in a bundle: "b, c", or "none".
std::string names_in(const fs::path& persons) {
    std::vector<std::string> names;
    std::error_code ignored;
    for (fs::directory_iterator place(persons, ignored), end; !ignored && place != end; place.increment(ignored))
        if (is_file(place->path() / record)) names.push_back(place->path().filename().string());
    std::sort(names.begin(), names.end());
    std::string out;
    for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
    return out.empty() ? "none" : out;
}

void verify(const Pack& pack, const fs::path& folder, const std::string& name) {
    const fs::path file = folder / name;
    const auto entry = std::find_if(pack.files.begin(), pack.files.end(),
                                    [&](const FileEntry& listed) { return listed.name == name; });
    if (entry == pack.files.end() || !is_file(file))
        throw Error(Kind::bundle, "pack-missing",
                    text(folder.string(), " lacks ", name, "; copy the pack whole or export it again"));
    std::error_code failed;
    const auto size = fs::file_size(file, failed);
    if (failed || size != entry->bytes || sha256_of(file) != entry->sha256)
        throw Error(Kind::bundle, "pack-hash",
                    text(file.string(), " was altered; copy the pack again or export it again"));
}

LowRank read_low_rank(const Json& object, const std::string& where) {
    Fields fields(object, where + ": low_rank", "pack-format");
    const LowRank out{static_cast<int>(fields.whole("rank", 1, largest_count)), fields.number("scale")};
    fields.done();
    return out;
}

}  // namespace

Pack Pack::parse(std::string_view content, const std::string& name) {
    Json raw = Json::parse(content, nullptr, false);
    Fields fields(raw, name, "pack-format");
    const std::string known = fields.string("format");
    if (known != format && known != low_rank_format) fields.refuse("has the unknown format '" + known + "'");
    Pack pack;
    if (known == low_rank_format) pack.low_rank = read_low_rank(fields.at("low_rank"), name);
    pack.base_sha256 = fields.string("base_sha256");
    pack.prompt = fields.string("prompt");
    pack.training_frames = static_cast<int>(fields.whole("training_frames", 1, largest_count));
    pack.width = static_cast<int>(fields.whole("width", 1, largest_side));
    pack.height = static_cast<int>(fields.whole("height", 1, largest_side));
    pack.fps = fields.number("fps");
    pack.files = read_entries(fields.at("files"), name, "pack-format");
    fields.object("parity");
    fields.done();
    return pack;
}

Pack Pack::read(const fs::path& folder) {
    const fs::path path = folder / record;
    const auto content = is_file(path) ? read_file(path) : std::nullopt;
    if (!content)
        throw Error(Kind::bundle, "pack-missing",
                    text(folder.string(), " is no person's pack; make one: posecrafter export --person"));
    Pack pack = parse(*content, path.string());
    for (const char* name : {"poses.json", "latents.safetensors", "text.safetensors", weights_file})
        verify(pack, folder, name);
    return pack;
}

fs::path find_pack(const fs::path& bundle, const std::string& person) {
    const fs::path persons = bundle / "persons", named(person);
    if (!person.empty() && named.filename() == named && is_file(persons / named / record)) return persons / named;
    if (!person.empty() && is_file(named / record)) return named;
    throw Error(Kind::bundle, "pack-missing",
                text(bundle.string(), " has no person '", person, "'; it has: ", names_in(persons)));
}

}  // namespace posecrafter
