// Several people on one bundle's graphs: going from one to another and back, and what refuses a pack.
#include <dlfcn.h>

#include <cstring>
#include <fstream>
#include <posecrafter/posecrafter.hpp>

#include "check.hpp"
#include "small_bundle.hpp"

namespace {

namespace fs = std::filesystem;

using Frames = std::vector<std::uint8_t>;

posecrafter::Options fake() {
    posecrafter::Options options;
    options.engine = FAKE_ENGINE;
    return options;
}

// What the fake engine counts by this name.
int count(const char* name) {
    void* module = dlopen(FAKE_ENGINE, RTLD_NOW);
    const int so_far = reinterpret_cast<int (*)()>(dlsym(module, name))();
    dlclose(module);
    return so_far;
}

int uploads() {
    return count("fake_engine_uploads");
}

Frames frames_of(posecrafter::Session& session) {
    const auto points = moving_person(3);
    posecrafter::Request request;
    request.poses = {3, 64, 64, points.data()};
    return session.render(request).data;
}

void coming_back_restores_everybody_to_the_bit() {
    const SmallBundle bundle(SmallBundle::Kind::shared);
    posecrafter::Session session(bundle.path(), fake());
    const Frames own = frames_of(session);
    session.load_person("ann");
    const Frames ann = frames_of(session);
    session.load_person((bundle.folder() / "persons/bob").string());
    const Frames bob = frames_of(session);
    CLAIM(own != ann && ann != bob && own != bob);
    session.load_person("ann");
    CLAIM(frames_of(session) == ann);
    session.load_person();
    CLAIM(frames_of(session) == own);
    // Alone in a session of his own he looks the same.
    posecrafter::Session other(bundle.path(), fake());
    other.load_person("bob");
    CLAIM(frames_of(other) == bob);
}

void a_description_is_the_persons() {
    const SmallBundle bundle(SmallBundle::Kind::shared);
    posecrafter::Session session(bundle.path(), fake());
    const pc_description own = session.description();
    session.load_person("ann");
    const pc_description ann = session.description();
    CLAIM(own.training_frames == 6 && std::string(own.prompt) == "a person" && own.fps == 25.0);
    CLAIM(ann.training_frames == 5 && std::string(ann.prompt) == "ann" && ann.fps == 12.5);
}

// Neither the pack nor the engine is touched again: the folder may even be gone.
void who_was_loaded_is_copied_in_once() {
    const SmallBundle bundle(SmallBundle::Kind::shared);
    posecrafter::Session session(bundle.path(), fake());
    const int before = uploads();
    session.load_person("ann");
    CLAIM(uploads() == before + 2);
    const Frames ann = frames_of(session);
    fs::remove_all(bundle.folder() / "persons");
    const int loaded = uploads();
    session.load_person();
    session.load_person("ann");
    CLAIM(uploads() == loaded);
    CLAIM(frames_of(session) == ann);
}

void who_is_unloaded_is_freed_and_can_come_back() {
    const SmallBundle bundle(SmallBundle::Kind::shared);
    posecrafter::Session session(bundle.path(), fake());
    const Frames own = frames_of(session);
    const int before = count("fake_engine_held");
    session.load_person("bob");
    session.load_person("ann");
    const Frames ann = frames_of(session);
    session.unload_person("bob");
    CLAIM(frames_of(session) == ann);
    session.unload_person("ann");
    session.unload_person("zoe");
    CLAIM(count("fake_engine_held") == before);
    CLAIM(frames_of(session) == own && session.description().fps == 25.0);
    const int uploaded = count("fake_engine_uploads");
    session.load_person("ann");
    CLAIM(count("fake_engine_uploads") == uploaded + 2);
    CLAIM(frames_of(session) == ann);
}

// What a pack may be spoilt with, while the session renders somebody else.
void refused_packs_leave_the_session_as_it_was() {
    const SmallBundle bundle(SmallBundle::Kind::shared);
    posecrafter::Session session(bundle.path(), fake());
    session.load_person("bob");
    const Frames bob = frames_of(session);
    const fs::path pack = bundle.folder() / "persons/ann";
    REFUSED("pack-missing", pc_load_person(session.get(), "zoe"));
    CLAIM(std::strstr(pc_last_error_message(), "it has: ann, bob") != nullptr);
    REFUSED("pack-missing", pc_load_person(session.get(), ""));
    REFUSED("pack-missing", pc_load_person(session.get(), bundle.path().c_str()));
    std::ofstream(pack / "text.safetensors", std::ios::app) << "x";
    REFUSED("pack-hash", pc_load_person(session.get(), "ann"));
    fs::remove(pack / "weights.safetensors");
    fs::remove(pack / "text.safetensors");
    REFUSED("pack-missing", pc_load_person(session.get(), "ann"));
    std::ofstream(pack / "person.json") << "{";
    REFUSED("pack-format", pc_load_person(session.get(), "ann"));
    CLAIM(frames_of(session) == bob);
    CLAIM(session.description().fps == 12.5);
}

}  // namespace

int main() {
    coming_back_restores_everybody_to_the_bit();
    a_description_is_the_persons();
    who_was_loaded_is_copied_in_once();
    who_is_unloaded_is_freed_and_can_come_back();
    refused_packs_leave_the_session_as_it_was();
    return failures;
}
