#include "small_bundle.hpp"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "noise.hpp"
#include "sha256.hpp"

namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

void write(const fs::path& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
}

// Tensors of noise, by name. seed: of the first one's.
void write_tensors(const fs::path& path, const std::vector<std::pair<std::string, std::vector<int>>>& tensors,
                   std::uint64_t seed = 0) {
    Json header;
    std::string data;
    for (const auto& [name, shape] : tensors) {
        std::size_t count = 1;
        for (const int side : shape) count *= static_cast<std::size_t>(side);
        const auto values = posecrafter::gaussian_noise(seed + data.size(), count);
        const std::size_t begin = data.size();
        data.append(reinterpret_cast<const char*>(values.data()), count * sizeof(float));
        header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string text = header.dump();
    const std::uint64_t length = text.size();
    write(path, std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data);
}

void write_poses(const fs::path& path, const std::vector<float>& points) {
    const auto part = [&](std::size_t frame, std::size_t first, std::size_t last) {
        const auto* start = points.data() + (frame * 130 + first) * 3;
        return std::vector<float>(start, start + (last - first) * 3);
    };
    Json frames = Json::array();
    for (std::size_t f = 0; f < points.size() / 390; ++f)
        frames.push_back({{"people",
                           {{{"pose_keypoints_2d", part(f, 0, 18)},
                             {"hand_left_keypoints_2d", part(f, 18, 39)},
                             {"hand_right_keypoints_2d", part(f, 39, 60)},
                             {"face_keypoints_2d", part(f, 60, 130)}}}},
                          {"canvas_width", 64},
                          {"canvas_height", 64},
                          {"keypoint_units", "pixel"}});
    write(path, frames.dump());
}

Json entries_of(const fs::path& folder) {
    Json entries;
    for (const auto& item : fs::recursive_directory_iterator(folder))
        if (item.is_regular_file())
            entries[fs::relative(item.path(), folder).string()] = {{"bytes", item.file_size()},
                                                                   {"sha256", posecrafter::sha256_of(item.path())}};
    return entries;
}

// What a person's folder holds: 64x64, `frames` training frames; everything but the poses comes from `seed`.
void write_person(const fs::path& folder, int frames, std::uint64_t seed) {
    fs::create_directories(folder);
    write_poses(folder / "poses.json", moving_person(frames));
    write_tensors(folder / "latents.safetensors", {{"latents", {frames, 4, 8, 8}}}, seed);
    write_tensors(folder / "text.safetensors", {{"empty", {5, 6}}, {"prompt", {5, 6}}}, seed);
}

void write_weights(const fs::path& folder, std::uint64_t seed) {
    write_tensors(folder / "weights.safetensors", {{"denoiser/bias", {3}}, {"denoiser/matrix", {2, 5}}}, seed);
}

void write_pack(const fs::path& folder, const std::string& name, std::uint64_t seed) {
    write_person(folder, 5, seed);
    write_weights(folder, seed);
    const Json record = {{"format", "posecrafter-pack-1"},
                         {"base_sha256", "base"},
                         {"training_frames", 5},
                         {"fps", 12.5},
                         {"prompt", name},
                         {"width", 64},
                         {"height", 64},
                         {"files", entries_of(folder)},
                         {"parity", Json::object()}};
    write(folder / "person.json", record.dump());
}

void write_manifest(const fs::path& folder, bool shared) {
    const Json range = {{"min", 64}, {"max", 64}, {"multiple", 8}};
    Json manifest = {
        {"format", "posecrafter-bundle"},
        {"format_version", 1},
        {"precision", "fp32"},
        {"width", range},
        {"height", range},
        {"frames", {{"min", 1}, {"max", 9}, {"multiple", 1}}},
        {"prompts", {{"min", 1}, {"max", 4}, {"multiple", 1}}},
        {"latents", {{"channels", 4}, {"factor", 8}, {"scaling_factor", 1.0}}},
        {"text", {{"tokens", 5}, {"width", 6}, {"prompt", "a person"}}},
        {"schedule", Json::object()},
        {"defaults", {{"width", 64}, {"height", 64}, {"steps", 4}, {"guidance", 2.0}, {"control_scale", 1.0}}},
        {"pose_style", "v1.1"},
        {"fps", 25.0},
        {"training_frames", 6},
        {"network_width", 32},
        {"kind", shared ? "shared" : "merged"},
        {"shared", Json::object()},
        {"parity", Json::object()},
        {"provenance", {{"base_sha256", "base"}}},
        {"files", entries_of(folder)}};
    if (shared) manifest["shared"]["denoiser"] = {{"bias", {3}}, {"matrix", {2, 5}}};
    write(folder / "manifest.json", manifest.dump());
}

}  // namespace

SmallBundle::SmallBundle(Kind kind) {
    std::string name = (fs::temp_directory_path() / "posecrafter-XXXXXX").string();
    folder_ = mkdtemp(name.data());
    fs::create_directories(folder_ / "graphs");
    for (const char* graph : {"pose_encoder", "denoiser", "vae_decoder"})
        write(folder_ / "graphs" / (std::string(graph) + ".onnx"), graph);
    write_person(folder_ / "person", 6, 0);
    const bool shared = kind == Kind::shared;
    if (shared) {
        write_weights(folder_ / "person", 0);
        write(folder_ / "graphs/denoiser.onnx", "inputs bias matrix");
    }
    write_manifest(folder_, shared);
    if (!shared) return;
    write_pack(folder_ / "persons/ann", "ann", 100);
    write_pack(folder_ / "persons/bob", "bob", 200);
}

SmallBundle::~SmallBundle() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
}

std::vector<float> moving_person(int frames) {
    std::vector<float> points;
    for (int f = 0; f < frames; ++f)
        for (int k = 0; k < 130; ++k) {
            points.push_back(32 + 20 * std::sin(static_cast<float>(k)) + static_cast<float>(f));
            points.push_back(32 + 20 * std::cos(static_cast<float>(k) * 1.7F));
            points.push_back(1);
        }
    return points;
}
