#include "plans.hpp"

#include <algorithm>
#include <optional>
#include <string_view>

#include "../core/fields.hpp"
#include "../core/files.hpp"
#include "../core/manifest.hpp"
#include "../core/sha256.hpp"

namespace posecrafter {
namespace {

namespace fs = std::filesystem;

constexpr const char* code = "plan-record";
constexpr const char* record = "engine.json";

[[noreturn]] void refuse(const char* with, const Built& built, const std::string& what) {
    throw Error(Kind::engine, with, text(what, ". Run: ", built.cure));
}

Profile profile_of(const Json& object, const std::string& where) {
    Fields fields(object, where, code);
    const Json& sizes = fields.at("sizes");
    const Fields checked(sizes, where, code);
    Profile out;
    for (const auto& item : sizes.items()) {
        const Json& ends = item.value();
        const auto is_whole = [](const Json& end) { return end.is_number_integer(); };
        if (!ends.is_array() || ends.size() != 3 || !std::all_of(ends.begin(), ends.end(), is_whole))
            checked.refuse("has sizes that are not three numbers");
        out.low[item.key()] = ends[0].get<std::int64_t>();
        out.high[item.key()] = ends[2].get<std::int64_t>();
    }
    fields.done();
    return out;
}

PlanFile plan_of(const Json& object, const std::string& where) {
    Fields fields(object, where, code);
    PlanFile plan{fields.string("file"),
                  fields.string("sha256"),
                  static_cast<std::uint64_t>(fields.whole("bytes", 0, INT64_MAX)),
                  {}};
    const Json& profiles = fields.at("profiles");
    if (!profiles.is_array()) fields.refuse("has profiles that are no list");
    for (const Json& profile : profiles) plan.profiles.push_back(profile_of(profile, where));
    for (const char* told : {"seconds", "layers", "fused", "decomposed"}) fields.has(told);
    fields.done();
    return plan;
}

Built read_built(const fs::path& folder, const std::string& cure) {
    const std::string path = (folder / record).string();
    const auto content = read_file(path);
    const Json raw = Json::parse(content.value_or(""), nullptr, false);
    Fields fields(raw, path, code);
    if (fields.string("format") != "posecrafter-engine" || fields.whole("format_version", 0, INT32_MAX) != 1)
        fields.refuse("is of another format");
    Built built{folder, fields.string("engine"), fields.string("version"), fields.string("target"), {}, {}, cure};
    const Json &sources = fields.at("sources"), &graphs = fields.at("graphs");
    Fields hashes(sources, path + ": sources", code);
    for (const auto& item : sources.items()) built.sources[item.key()] = hashes.string(item.key());
    const Fields checked(graphs, path + ": graphs", code);
    for (const auto& item : graphs.items()) {
        if (!item.value().is_array() || item.value().size() != 1) checked.refuse("has no single plan of " + item.key());
        built.graphs[item.key()] = plan_of(item.value()[0], path + ": " + item.key());
    }
    for (const char* told : {"precision", "options", "parity"}) fields.has(told);
    fields.done();
    return built;
}

// One hash over a graph's files, from the manifest's; the CPU's copy is not among them.
std::string source_hash(const Manifest& manifest, const std::string& graph) {
    std::string lines;
    for (const char* suffix : {".onnx", ".weights"}) {
        const std::string name = "graphs/" + graph + suffix;
        for (const FileEntry& file : manifest.files)
            if (file.name == name) lines += name + ":" + file.sha256 + "\n";
    }
    return sha256_of_text(lines);
}

void check(const Built& built, const Manifest& manifest, const std::string& version) {
    if (built.version != version)
        refuse("plan-version", built,
               text("engine '", built.engine, "' was built for ", built.target, " with version ", built.version,
                    "; this machine has ", version));
    for (const auto& [graph, built_from] : built.sources)
        if (const std::string found = source_hash(manifest, graph); found != built_from)
            refuse("plan-stale", built,
                   text("engine '", built.engine, "': '", graph, "' was built from a graph with hash ",
                        built_from.substr(0, 12), ", the bundle's has ", found.substr(0, 12)));
}

// The folders of an engine, sorted by name; "tensorrt-sm90" is not one of "tensorrt-rtx".
std::vector<fs::path> folders_of(const fs::path& bundle, const std::string& engine) {
    std::vector<fs::path> found;
    std::error_code ignored;
    for (fs::directory_iterator place(bundle / "engines", ignored), end; !ignored && place != end;
         place.increment(ignored)) {
        const std::string name = place->path().filename().string();
        const bool other = name.starts_with("tensorrt-rtx-") && engine != "tensorrt-rtx";
        if (name.starts_with(engine + "-") && !other && fs::is_regular_file(place->path() / record, ignored))
            found.push_back(place->path());
    }
    std::sort(found.begin(), found.end());
    return found;
}

bool is_for(const Built& built, const std::string& target) {
    return ("+" + built.target + "+").find("+" + target + "+") != std::string::npos;
}

std::string told(const Profile& profile) {
    std::string out;
    for (const auto& [name, low] : profile.low) {
        const std::int64_t high = profile.high.at(name);
        out += text(out.empty() ? "" : ", ", name, " ", low);
        if (high != low) out += text("..", high);
    }
    return out;
}

}  // namespace

bool Profile::takes(const Sizes& sizes) const {
    return std::all_of(low.begin(), low.end(), [&](const auto& end) {
        const auto size = sizes.find(end.first);
        return size != sizes.end() && end.second <= size->second && size->second <= high.at(end.first);
    });
}

Built find_built(const fs::path& bundle, const std::string& engine, const std::string& version,
                 const std::string& here) {
    const Manifest manifest = Manifest::read(bundle);
    const std::string cure = "posecrafter compile " + bundle.string() + " --engine " + engine;
    std::vector<Built> found;
    std::optional<Error> refused;
    for (const fs::path& folder : folders_of(bundle, engine)) {
        try {
            Built built = read_built(folder, cure);
            check(built, manifest, version);
            found.push_back(std::move(built));
        } catch (const Error& error) {
            if (!refused) refused = error;
        }
    }
    if (found.empty() && refused) throw Error(*refused);
    if (found.empty())
        throw Error(Kind::engine, "plan-missing",
                    text(bundle.string(), " holds nothing built for ", engine, ". Run: ", cure));
    for (const std::string& wanted : {here, std::string("any")})
        for (const Built& built : found)
            if (is_for(built, wanted)) return built;
    std::string there;
    for (const Built& built : found) there += (there.empty() ? "" : ", ") + built.target;
    refuse("plan-target", found.front(),
           text("engine '", engine, "' was built for ", there, "; this machine is ", here));
}

std::string read_plan(const Built& built, const std::string& graph) {
    const auto place = built.graphs.find(graph);
    if (place == built.graphs.end())
        refuse("plan-missing", built, text(built.folder.string(), " has no plan for '", graph, "'"));
    const PlanFile& plan = place->second;
    const fs::path path = built.folder / plan.file;
    auto content = path.parent_path() == built.folder ? read_file(path) : std::nullopt;
    if (!content) refuse("plan-missing", built, text(built.folder.string(), " lacks ", plan.file));
    if (content->size() != plan.bytes || sha256_of_text(*content) != plan.sha256)
        refuse("plan-altered", built, text(path.string(), " was altered"));
    return std::move(*content);
}

int choose_profile(const Built& built, const std::string& graph, const Sizes& sizes) {
    const std::vector<Profile>& profiles = built.graphs.at(graph).profiles;
    int best = -1;
    std::int64_t narrowest = 0;
    for (std::size_t i = 0; i < profiles.size(); ++i) {
        if (!profiles[i].takes(sizes)) continue;
        std::int64_t width = 0;
        for (const auto& [name, low] : profiles[i].low) width += profiles[i].high.at(name) - low;
        if (best < 0 || width < narrowest) {
            best = static_cast<int>(i);
            narrowest = width;
        }
    }
    if (best >= 0) return best;
    std::string wanted, there;
    for (const auto& [name, size] : sizes) wanted += text(wanted.empty() ? "" : ", ", name, " ", size);
    for (const Profile& profile : profiles) there += (there.empty() ? "" : "; ") + told(profile);
    refuse("plan-size", built, text("'", graph, "' was not built for ", wanted, ", but for: ", there));
}

}  // namespace posecrafter
