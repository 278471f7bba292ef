// What the comparison with Python runs: plan, control images, latents and frames of one request, written to files.
//     native_dump BUNDLE [poses=FILE] [out=FOLDER] [engine=..] [library=..] [threads=..] [steps=..] ...
// together=N renders in N sessions at once, each in a thread of its own, to FOLDER/0, FOLDER/1, ...
// Without poses it only opens the bundle. persons=A,,B loads A, the bundle's own and B one after another and writes
// what is rendered for each to FOLDER/0, FOLDER/1, ... Prints the code of a refusal and exits with 2.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <posecrafter/posecrafter.hpp>
#include <sstream>

namespace {

using Words = std::map<std::string, std::string>;

void save(const std::string& path, const void* data, std::size_t bytes) {
    std::ofstream(path, std::ios::binary).write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

// Plan, control images, latents and frames of one request.
void render(posecrafter::Session& session, const posecrafter::Request& request, const std::string& out) {
    const std::string plan = session.plan(request).view().json;
    save(out + "/plan.json", plan.data(), plan.size());
    const posecrafter::Video maps = session.draw(request);
    save(out + "/maps.u8", maps.data.data(), maps.data.size());
    const pc_description about = session.description();
    const std::size_t cells =
        std::size_t(about.height / about.latent_factor) * std::size_t(about.width / about.latent_factor);
    std::vector<float> latents(std::size_t(maps.frames) * std::size_t(about.latent_channels) * cells);
    std::vector<std::uint8_t> frames(maps.data.size());
    pc_output output;
    pc_output_init(&output);
    output.frames = frames.data();
    output.frames_bytes = frames.size();
    output.latents = latents.data();
    output.latents_bytes = latents.size() * sizeof(float);
    posecrafter::check(pc_render(session.get(), &request, &output));
    save(out + "/latents.f32", latents.data(), output.latents_bytes);
    save(out + "/frames.u8", frames.data(), frames.size());
}

void run(const std::string& bundle, Words words) {
    const auto number = [&](const char* name, double otherwise) {
        return words.count(name) ? std::strtod(words[name].c_str(), nullptr) : otherwise;
    };
    posecrafter::Options options;
    if (words.count("engine")) options.engine = words["engine"].c_str();
    if (words.count("library")) options.engine_library = words["library"].c_str();
    if (words.count("device")) options.device = words["device"].c_str();
    if (words.count("precision")) options.precision = words["precision"].c_str();
    options.threads = static_cast<std::int32_t>(number("threads", 0));
    posecrafter::Session session(bundle, options);
    if (!words.count("poses")) return;
    const auto poses = posecrafter::Poses::read(words["poses"]);
    posecrafter::Request request(poses);
    request.reference = static_cast<std::int32_t>(number("reference", PC_DEFAULT));
    request.steps = static_cast<std::int32_t>(number("steps", PC_DEFAULT));
    request.sampling_steps = static_cast<std::int32_t>(number("sampling_steps", PC_DEFAULT));
    request.guidance = number("guidance", PC_DEFAULT);
    request.control_scale = number("control_scale", PC_DEFAULT);
    request.inversion = static_cast<std::int32_t>(number("inversion", PC_INVERT_REFERENCE));
    request.inversion_iterations = static_cast<std::int32_t>(number("inversion_iterations", PC_DEFAULT));
    request.edit = static_cast<std::uint32_t>(number("edit", PC_ALL_REGIONS));
    request.warp = static_cast<std::int32_t>(number("warp", PC_WARP_NEAREST));
    request.keep_mean = static_cast<std::int32_t>(number("keep_mean", PC_DEFAULT));
    request.window = static_cast<std::int32_t>(number("window", PC_DEFAULT));
    request.decode_chunk = static_cast<std::int32_t>(number("decode_chunk", 8));
    request.seed = static_cast<std::uint64_t>(number("seed", 0));
    request.memory = static_cast<std::uint64_t>(number("memory", 0));
    if (!words.count("out")) return;
    const auto folder = [&](int i) {
        const std::string out = words["out"] + "/" + std::to_string(i);
        std::filesystem::create_directories(out);
        return out;
    };
    if (words.count("together")) {
        std::vector<std::future<void>> renders;
        for (int i = 0; i < static_cast<int>(number("together", 1)); ++i)
            renders.push_back(std::async(std::launch::async, [&, out = folder(i)] {
                posecrafter::Session own(bundle, options);
                render(own, request, out);
            }));
        for (auto& one : renders) one.get();
        return;
    }
    if (!words.count("persons")) return render(session, request, words["out"]);
    std::stringstream persons(words["persons"] + ",");
    std::string person;
    for (int i = 0; std::getline(persons, person, ','); ++i) {
        const std::string out = folder(i);
        person.empty() ? session.load_person() : session.load_person(person);
        render(session, request, out);
    }
}

}  // namespace

int main(int count, char** values) {
    Words words;
    for (int i = 2; i < count; ++i) {
        const std::string word = values[i];
        words[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
    }
    try {
        run(count > 1 ? values[1] : "", words);
        return 0;
    } catch (const posecrafter::Failed& error) {
        std::printf("%s\n", error.code().c_str());
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
