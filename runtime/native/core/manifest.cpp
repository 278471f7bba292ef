#include "manifest.hpp"

#include <algorithm>
#include <cmath>

#include "entries.hpp"
#include "files.hpp"
#include "sha256.hpp"

namespace posecrafter {
namespace {

namespace fs = std::filesystem;

constexpr int format_version = 1;

Range range(const Json& object, const std::string& where) {
    Fields fields(object, where);
    Range out{fields.whole("min", 1, largest_count), fields.whole("max", 1, largest_count), 1};
    if (fields.has("multiple")) out.multiple = fields.whole("multiple", 1, largest_count);
    fields.done();
    return out;
}

void read_latents(const Json& object, const std::string& where, Manifest& out) {
    Fields fields(object, where + ": latents");
    out.channels = static_cast<int>(fields.whole("channels", 1, 4096));
    out.factor = static_cast<int>(fields.whole("factor", 1, 256));
    fields.number("scaling_factor");
    fields.done();
}

void read_text(const Json& object, const std::string& where, Manifest& out) {
    Fields fields(object, where + ": text");
    out.tokens = static_cast<int>(fields.whole("tokens", 1, largest_count));
    out.text_width = static_cast<int>(fields.whole("width", 1, largest_count));
    out.prompt = fields.string("prompt");
    fields.done();
}

void read_schedule(const Json& object, const std::string& where, Manifest& out) {
    Fields fields(object, where + ": schedule");
    Schedule& s = out.schedule;
    if (fields.has("train_steps")) s.train_steps = static_cast<int>(fields.whole("train_steps", 1, largest_count));
    if (fields.has("beta_start")) s.beta_start = fields.number("beta_start");
    if (fields.has("beta_end")) s.beta_end = fields.number("beta_end");
    if (fields.has("beta_schedule")) s.beta_schedule = fields.string("beta_schedule");
    if (fields.has("steps_offset")) s.steps_offset = static_cast<int>(fields.whole("steps_offset", 0, largest_count));
    if (fields.has("set_alpha_to_one")) s.set_alpha_to_one = fields.flag("set_alpha_to_one");
    fields.done();
}

void read_defaults(const Json& object, const std::string& where, Manifest& out) {
    Fields fields(object, where + ": defaults");
    out.width = static_cast<int>(fields.whole("width", 1, largest_side));
    out.height = static_cast<int>(fields.whole("height", 1, largest_side));
    out.steps = static_cast<int>(fields.whole("steps", 1, largest_count));
    out.guidance = fields.number("guidance");
    out.control_scale = fields.number("control_scale");
    if (fields.has("inversion_iterations"))
        out.inversion_iterations = static_cast<int>(fields.whole("inversion_iterations", 1, most_iterations));
    if (fields.has("keep_mean")) out.keep_mean = fields.flag("keep_mean");
    if (fields.has("sampling_steps"))
        out.sampling_steps = static_cast<int>(fields.whole("sampling_steps", 0, largest_count));
    if (out.sampling_steps == 0) out.sampling_steps = out.steps;
    fields.done();
}

// Of a graph: its inputs that are a person's, and their shapes.
InputShapes read_shapes(const Json& object, const std::string& where) {
    const Fields graph(object, where);
    InputShapes out;
    for (const auto& item : object.items()) {
        std::vector<std::int64_t>& shape = out[item.key()];
        if (!item.value().is_array()) graph.refuse("has a shape that is no list: " + item.key());
        for (const Json& side : item.value()) {
            if (!side.is_number_unsigned() || side.get<std::uint64_t>() > INT32_MAX)
                graph.refuse("has a shape of something else than sizes: " + item.key());
            shape.push_back(side.get<std::int64_t>());
        }
    }
    return out;
}

void read_shared(const Json& object, const std::string& where, Manifest& out) {
    const Fields checked(object, where + ": shared");
    for (const auto& item : object.items())
        out.shared[item.key()] = read_shapes(item.value(), where + ": shared: " + item.key());
}

// Of the provenance only the base is of use here; the rest is for people to read.
void read_provenance(const Json& object, Manifest& out) {
    const auto base = object.find("base_sha256");
    if (base != object.end() && base->is_string()) out.base_sha256 = base->get<std::string>();
}

// A format version as Python prints it. Lists in lists are not printed: that recurses as deep as they are.
std::string version_text(const Json* version) {
    if (!version) return "None";
    return version->is_structured() ? version->type_name() : version->dump();
}

// Every file in the folders in which a bundle lists every file; a name with a dot in front is the system's.
std::vector<std::string> present(const fs::path& root) {
    std::vector<std::string> names;
    for (const char* part : {"graphs", "person"}) {
        std::error_code failed;
        for (fs::recursive_directory_iterator place(root / part, failed), end; !failed && place != end;
             place.increment(failed))
            if (!place->is_directory(failed) && place->path().filename().string()[0] != '.')
                names.push_back(place->path().lexically_relative(root).generic_string());
    }
    return names;
}

bool is_inside(const fs::path& path, const fs::path& root) {
    const auto [end, _] = std::mismatch(root.begin(), root.end(), path.begin(), path.end());
    return end == root.end();
}

}  // namespace

std::vector<FileEntry> read_entries(const Json& object, const std::string& where, const char* code) {
    const Fields checked(object, where + ": files", code);
    std::vector<FileEntry> entries;
    for (const auto& item : object.items()) {
        Fields fields(item.value(), where + ": files: " + item.key(), code);
        FileEntry entry{item.key(), static_cast<std::uint64_t>(fields.whole("bytes", 0, INT64_MAX)), ""};
        entry.sha256 = fields.string("sha256");
        fields.done();
        entries.push_back(std::move(entry));
    }
    return entries;
}

bool Manifest::lists(std::string_view name) const {
    return std::any_of(files.begin(), files.end(), [&](const FileEntry& entry) { return entry.name == name; });
}

Manifest Manifest::read(const fs::path& folder) {
    const fs::path path = folder / "manifest.json";
    std::error_code ignored;
    const auto content = fs::is_regular_file(path, ignored) ? read_file(path) : std::nullopt;
    if (!content)
        throw Error(Kind::bundle, "bundle-missing",
                    text(folder.string(), " is not a bundle: it has no manifest.json. Make one: posecrafter export"));
    return parse(*content, path.string());
}

Manifest Manifest::parse(std::string_view content, const std::string& name) {
    Json raw;
    try {
        if (content.substr(0, 3) == "\xEF\xBB\xBF") throw std::invalid_argument("it starts with a byte order mark");
        raw = Json::parse(content);
    } catch (const std::exception& error) {
        throw Error(Kind::bundle, "bundle-manifest",
                    text(name, " is not valid JSON (", error.what(), "); export the bundle again"));
    }
    if (!raw.is_object() || !raw.contains("format") || raw["format"] != "posecrafter-bundle")
        throw Error(Kind::bundle, "bundle-manifest", name + " is not a PoseCrafter manifest; export the bundle again");
    const auto version = raw.find("format_version");
    if (version == raw.end() || !version->is_number() || version->get<double>() != format_version) {
        const bool newer = version != raw.end() && version->is_number() && version->get<double>() > format_version;
        throw Error(
            Kind::bundle, "bundle-format",
            text(name, " has format version ", version_text(version == raw.end() ? nullptr : &*version),
                 "; this release reads ", format_version, ": ", newer ? "update posecrafter" : "export it again"));
    }
    Fields fields(raw, name);
    Manifest out;
    fields.at("format");
    fields.at("format_version");
    out.precision = fields.string("precision");
    out.width_range = range(fields.at("width"), name + ": width");
    out.height_range = range(fields.at("height"), name + ": height");
    out.frames = range(fields.at("frames"), name + ": frames");
    out.prompts = range(fields.at("prompts"), name + ": prompts");
    read_latents(fields.at("latents"), name, out);
    read_text(fields.at("text"), name, out);
    read_schedule(fields.at("schedule"), name, out);
    read_defaults(fields.at("defaults"), name, out);
    out.pose_style = fields.string("pose_style");
    out.fps = fields.number("fps");
    out.training_frames = static_cast<int>(fields.whole("training_frames", 1, largest_count));
    out.network_width = static_cast<int>(fields.whole("network_width", 1, largest_count));
    if (fields.has("kind")) out.kind = fields.string("kind");
    if (out.kind != "merged" && out.kind != "shared") fields.refuse("is of the unknown kind '" + out.kind + "'");
    fields.object("parity");
    read_shared(fields.object("shared"), name, out);
    read_provenance(fields.object("provenance"), out);
    out.files = read_entries(fields.at("files"), name, "bundle-manifest");
    fields.done();
    if (out.frames.max < 2) fields.refuse("allows no frame beside the reference");
    return out;
}

void Manifest::verify(const fs::path& folder) const {
    const fs::path root = fs::weakly_canonical(folder);
    for (const FileEntry& entry : files) {
        std::error_code failed;
        const bool whole = entry.name.find('\0') == std::string::npos;
        const fs::path path = whole ? fs::weakly_canonical(root / entry.name, failed) : fs::path();
        if (!whole || failed || !is_inside(path, root))
            throw Error(Kind::bundle, "bundle-path",
                        text(folder.string(), ": the manifest lists ", entry.name, ", which lies outside the bundle"));
        if (!fs::is_regular_file(path, failed))
            throw Error(Kind::bundle, "bundle-file-missing",
                        text(folder.string(), " lacks ", entry.name, "; copy the bundle whole or export it again"));
        const auto size = fs::file_size(path, failed);
        if (failed || size != entry.bytes)
            throw Error(Kind::bundle, "bundle-hash",
                        text(folder.string(), ": ", entry.name, " has ", size, " bytes, the manifest says ",
                             entry.bytes, "; copy it again"));
        const std::string digest = sha256_of(path);
        if (digest != entry.sha256)
            throw Error(Kind::bundle, "bundle-hash",
                        text(folder.string(), ": ", entry.name, " was altered (sha256 ", digest.substr(0, 12),
                             ", expected ", entry.sha256.substr(0, 12), "); copy it again"));
    }
    for (const std::string& name : present(root))
        if (!lists(name))
            throw Error(Kind::bundle, "bundle-file-unlisted",
                        text(folder.string(), " holds ", name, ", which its manifest does not list; remove that file"));
}

}  // namespace posecrafter
