#include "bundle.hpp"

#include <utility>

#include "error.hpp"
#include "openpose.hpp"
#include "pack.hpp"

namespace posecrafter {
namespace {

using Shape = std::vector<std::int64_t>;

void expect(const std::string& name, const Shape& found, const Shape& wanted) {
    if (found != wanted)
        throw Error(
            Kind::bundle, "bundle-person",
            text(name, ": ", shape_text(found), ", the manifest says ", shape_text(wanted), "; export it again"));
}

Floats take(std::map<std::string, Floats>& tensors, const std::filesystem::path& path, const std::string& name) {
    const auto found = tensors.find(name);
    if (found == tensors.end())
        throw Error(Kind::bundle, "bundle-person",
                    text(path.string(), " has no tensor '", name, "' of floats; export it again"));
    return std::move(found->second);
}

}  // namespace

std::string shape_text(const Shape& shape) {
    std::string out = "[";
    for (const std::int64_t side : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(side);
    return out + "]";
}

std::size_t Bundle::latent_size() const {
    return std::size_t(manifest.channels) * std::size_t(cells_high()) * std::size_t(cells_wide());
}

Bundle Bundle::open(const std::filesystem::path& folder) {
    const Manifest m = Manifest::read(folder);
    std::vector<std::string> needed = {"person/poses.json", "person/latents.safetensors", "person/text.safetensors"};
    if (m.kind == "shared") needed.push_back(text("person/", weights_file));
    for (const std::string& name : needed)
        if (!m.lists(name))
            throw Error(Kind::bundle, "bundle-file-missing",
                        text(folder.string(), ": the manifest does not list ", name, "; export it again"));
    m.verify(folder);
    return with_person(folder, m, folder / "person");
}

Bundle Bundle::with_person(const std::filesystem::path& folder, const Manifest& m,
                           const std::filesystem::path& person) {
    const auto latents_path = person / "latents.safetensors", text_path = person / "text.safetensors";
    auto latents = read_tensors(latents_path), words = read_tensors(text_path);
    Bundle bundle{folder,
                  m,
                  read_poses(person / "poses.json"),
                  take(latents, latents_path, "latents"),
                  take(words, text_path, "prompt"),
                  take(words, text_path, "empty")};
    expect("latents", bundle.latents.shape, {m.training_frames, m.channels, bundle.cells_high(), bundle.cells_wide()});
    expect("poses", {bundle.poses.frames()}, {m.training_frames});
    expect("the poses' canvas", {bundle.poses.width(), bundle.poses.height()}, {m.width, m.height});
    expect("the prompt's embedding", bundle.prompt.shape, {m.tokens, m.text_width});
    expect("the empty prompt's embedding", bundle.empty.shape, {m.tokens, m.text_width});
    return bundle;
}

}  // namespace posecrafter
