// The C interface: arguments checked, exceptions turned into statuses, handles kept whole.
#include <posecrafter/posecrafter.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include "draw.hpp"
#include "error.hpp"
#include "openpose.hpp"
#include "session.hpp"

using posecrafter::Error;
using posecrafter::Kind;
using posecrafter::text;

struct pc_session {
    posecrafter::Session session;
    std::string engine, device;
    std::atomic<bool> busy{false};
};

struct pc_poses {
    posecrafter::Track track;
};

struct pc_planned {
    posecrafter::Plan plan;
    std::string json;
};

// A field that took the place of padding would not show in struct_size, and old programs would leave it undefined.
static_assert(offsetof(pc_options, precision) + sizeof(const char*) == sizeof(pc_options));
static_assert(offsetof(pc_description, reserved) + sizeof(std::int32_t) == sizeof(pc_description));
static_assert(offsetof(pc_request, reserved) + sizeof(std::int32_t) == sizeof(pc_request));
static_assert(offsetof(pc_output, latents_bytes) + sizeof(std::size_t) == sizeof(pc_output));

namespace {

struct LastError {
    std::string code, message;
};
LastError& last_error() {
    thread_local LastError error;
    return error;
}

pc_status note(pc_status status, const char* code, const char* message) noexcept {
    try {
        last_error() = {code, message};
    } catch (...) {
        last_error().code.clear();  // no memory even for the message; the status still tells
    }
    return status;
}

template <class Work>
pc_status guarded(Work work) noexcept {
    constexpr pc_status status_of[] = {PC_INTERNAL_ERROR, PC_REQUEST_ERROR, PC_BUNDLE_ERROR, PC_ENGINE_ERROR,
                                       PC_POSE_ERROR};
    try {
        work();
        last_error() = {};  // only now: callbacks may have made calls of their own
        return PC_OK;
    } catch (const Error& error) {
        return note(status_of[static_cast<int>(error.kind())], error.code().c_str(), error.what());
    } catch (const std::bad_alloc&) {
        return note(PC_INTERNAL_ERROR, "out-of-memory", "memory ran out; ask for fewer frames or smaller windows");
    } catch (const std::exception& error) {
        return note(PC_INTERNAL_ERROR, "internal", error.what());
    } catch (...) {
        return note(PC_INTERNAL_ERROR, "internal", "an exception of unknown type");
    }
}

void need(const void* pointer, const char* name) {
    if (!pointer) throw Error(Kind::request, "null-argument", text(name, " is NULL; pass a valid pointer"));
}

// The caller's structure, which may be of an older or a newer header, in this release's form.
template <class Struct>
Struct taken(const Struct* given, Struct known, const char* name) {
    need(given, name);
    const std::size_t size = given->struct_size;
    if (size < sizeof given->struct_size || size > 1 << 16)
        throw Error(Kind::request, "struct-size",
                    text(name, " has struct_size ", size, "; call its _init function first"));
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    if (std::any_of(bytes + std::min(size, sizeof known), bytes + size, [](unsigned char byte) { return byte != 0; }))
        throw Error(Kind::request, "struct-size",
                    text(name, " uses fields that this release does not know; update the library"));
    std::memcpy(&known, given, std::min(size, sizeof known));
    return known;
}

// Holds a session for one call.
class Hold {
  public:
    explicit Hold(pc_session& session) : session_(session) {
        if (session_.busy.exchange(true, std::memory_order_acquire))
            throw Error(Kind::request, "session-busy",
                        "the session is in use by another call; open one session for each thread");
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    ~Hold() { session_.busy.store(false, std::memory_order_release); }

  private:
    pc_session& session_;
};

posecrafter::EngineOptions options_of(const pc_options* given) {
    pc_options options;
    pc_options_init(&options);
    if (given) options = taken(given, options, "options");
    if (options.threads < 0 || options.threads > 4096)
        throw Error(Kind::request, "threads-range",
                    text("threads is ", options.threads, "; it must be between 0 and 4096"));
    const auto or_empty = [](const char* value) { return std::string(value ? value : ""); };
    return {options.engine ? options.engine : "auto", or_empty(options.engine_library), or_empty(options.device),
            or_empty(options.precision), options.threads};
}

std::optional<posecrafter::Canvas> canvas_of(std::int32_t width, std::int32_t height) {
    if (width == 0 && height == 0) return std::nullopt;
    if (width < 1 || height < 1)
        throw Error(Kind::pose, "poses-shape",
                    text("canvas of ", width, "x", height, " pixels; both sides must be at least 1"));
    return posecrafter::Canvas{width, height};
}

posecrafter::Track track_of(const pc_key_points& points) {
    need(points.points, "request.poses.points");
    const auto* first = reinterpret_cast<const posecrafter::KeyPoint*>(points.points);
    return {{first, first + std::size_t(points.frames) * posecrafter::key_points}, points.width, points.height};
}

int choice(std::int32_t value, int last, const char* code, const char* what) {
    if (value < 0 || value > last) throw Error(Kind::request, code, text(code, " is ", value, "; it must be ", what));
    return value;
}

template <class Value>
std::optional<Value> unless_default(Value value) {
    return value == Value(PC_DEFAULT) ? std::nullopt : std::optional<Value>(value);
}

posecrafter::Request request_of(const pc_request& given) {
    using posecrafter::Region;
    posecrafter::Request request;
    if (given.poses.frames < 0 || given.image_frames < 0 ||
        (given.image_frames > 0) != (given.control_images != nullptr) ||
        (given.poses.frames > 0 && given.image_frames > 0 && given.poses.frames != given.image_frames))
        throw Error(Kind::request, "frames-differ",
                    text("the request has ", given.poses.frames, " poses and ", given.image_frames,
                         " control images; give one of both for each frame, or only one kind"));
    request.frames = std::max(given.poses.frames, given.image_frames);
    constexpr int most = 1 << 20;
    if (request.frames > most)
        throw Error(Kind::pose, "poses-shape",
                    text("the request has ", request.frames, " frames; at most ", most, " are taken"));
    if (given.poses.frames > 0) request.poses = track_of(given.poses);
    request.images = given.control_images;
    request.reference = unless_default(given.reference);
    if (request.reference && *request.reference < 0)
        throw Error(Kind::request, "reference-range", text("reference is ", given.reference, "; it counts from 0"));
    request.prompt = given.prompt;
    request.negative = given.negative_prompt;
    request.steps = unless_default(given.steps);
    request.sampling_steps = unless_default(given.sampling_steps);
    request.guidance = unless_default(given.guidance);
    request.control_scale = unless_default(given.control_scale);
    constexpr posecrafter::Inversion inversions[] = {posecrafter::Inversion::reference, posecrafter::Inversion::target,
                                                     posecrafter::Inversion::none};
    request.inversion = inversions[choice(given.inversion, 2, "inversion", "a pc_inversion")];
    request.inversion_iterations = unless_default(given.inversion_iterations);
    request.warp =
        choice(given.warp, 1, "warp", "a pc_warp") ? posecrafter::Warp::bilinear : posecrafter::Warp::nearest;
    if (given.keep_mean != PC_DEFAULT)
        request.keep_mean = choice(given.keep_mean, 1, "keep_mean", "0, 1 or PC_DEFAULT") == 1;
    if (given.edit > PC_ALL_REGIONS)
        throw Error(Kind::request, "edit-region",
                    text("unknown edit regions ", given.edit, "; the bits are those of pc_region"));
    request.edit.clear();
    for (const Region region : posecrafter::regions)
        if (given.edit >> static_cast<int>(region) & 1) request.edit.push_back(region);
    request.window = unless_default(given.window);
    request.decode_chunk = given.decode_chunk;
    request.seed = given.seed;
    if (given.memory) request.memory = given.memory;
    return request;
}

pc_request taken_request(const pc_request* given) {
    pc_request known;
    pc_request_init(&known);
    known = taken(given, known, "request");
    if (known.reserved != 0)
        throw Error(Kind::request, "struct-size", "request uses a field that this release does not know; update it");
    return known;
}

void need_bytes(const char* name, const void* buffer, std::size_t bytes, std::size_t needed) {
    if (buffer && bytes < needed)
        throw Error(Kind::request, "buffer-size", text(name, " has ", bytes, " bytes; the result needs ", needed));
}

std::size_t picture_bytes(const posecrafter::Bundle& bundle) {
    return std::size_t(bundle.manifest.width) * std::size_t(bundle.manifest.height) * 3;
}

}  // namespace

const char* pc_version(void) {
    return POSECRAFTER_VERSION;
}
const char* pc_last_error_code(void) {
    return last_error().code.c_str();
}
const char* pc_last_error_message(void) {
    return last_error().message.c_str();
}

pc_status pc_open(const char* bundle, const pc_options* options, pc_session** session) {
    return guarded([&] {
        need(bundle, "bundle");
        need(session, "session");
        std::unique_ptr<pc_session> made(new pc_session{{bundle, options_of(options)}, "", ""});
        made->engine = made->session.engine().name();
        made->device = made->session.engine().device();
        *session = made.release();
    });
}

pc_status pc_close(pc_session** session) {
    return guarded([&] {
        need(session, "session");
        if (!*session) return;
        if ((*session)->busy.exchange(true, std::memory_order_acquire))
            throw Error(Kind::request, "session-busy",
                        "the session is in use by another call; wait for it or cancel it");
        delete *session;
        *session = nullptr;
    });
}

pc_status pc_load_person(pc_session* session, const char* person) {
    return guarded([&] {
        need(session, "session");
        const Hold hold(*session);
        session->session.load_person(person ? std::optional<std::string>(person) : std::nullopt);
    });
}

pc_status pc_unload_person(pc_session* session, const char* person) {
    return guarded([&] {
        need(session, "session");
        need(person, "person");
        const Hold hold(*session);
        session->session.unload_person(person);
    });
}

pc_status pc_describe(pc_session* session, pc_description* description) {
    return guarded([&] {
        need(session, "session");
        const Hold hold(*session);
        pc_description out = taken(description, pc_description{}, "description");
        const posecrafter::Manifest& m = session->session.bundle().manifest;
        const auto size = out.struct_size;
        out = {size,
               m.width,
               m.height,
               m.channels,
               m.factor,
               m.tokens,
               m.text_width,
               m.training_frames,
               static_cast<std::int32_t>(m.frames.max) - 1,
               m.steps,
               m.guidance,
               m.control_scale,
               m.fps,
               m.pose_style.c_str(),
               m.prompt.c_str(),
               session->engine.c_str(),
               session->device.c_str(),
               m.sampling_steps,
               0};
        std::memcpy(description, &out, std::min<std::size_t>(size, sizeof out));
    });
}

pc_status pc_poses_read(const char* path, std::int32_t width, std::int32_t height, pc_poses** poses) {
    return guarded([&] {
        need(path, "path");
        need(poses, "poses");
        *poses = new pc_poses{posecrafter::read_poses(path, canvas_of(width, height))};
    });
}

pc_status pc_poses_parse(const char* json, std::size_t length, std::int32_t width, std::int32_t height,
                         pc_poses** poses) {
    return guarded([&] {
        need(json, "text");
        need(poses, "poses");
        *poses = new pc_poses{posecrafter::parse_poses({json, length}, "the text", canvas_of(width, height))};
    });
}

pc_status pc_poses_view(const pc_poses* poses, pc_key_points* key_points) {
    return guarded([&] {
        need(poses, "poses");
        need(key_points, "key_points");
        const posecrafter::Track& track = poses->track;
        *key_points = {track.frames(), track.width(), track.height(), reinterpret_cast<const float*>(track.frame(0))};
    });
}

void pc_poses_free(pc_poses** poses) {
    if (!poses) return;
    delete *poses;
    *poses = nullptr;
}

pc_status pc_plan(pc_session* session, const pc_request* request, pc_planned** plan) {
    return guarded([&] {
        need(session, "session");
        need(plan, "plan");
        const Hold hold(*session);
        posecrafter::Plan made = session->session.plan(request_of(taken_request(request)));
        std::string json = made.json();
        *plan = new pc_planned{std::move(made), std::move(json)};
    });
}

pc_status pc_planned_view(const pc_planned* plan, pc_plan_summary* summary) {
    return guarded([&] {
        need(plan, "plan");
        need(summary, "summary");
        const posecrafter::Plan& p = plan->plan;
        *summary = {
            p.frames,      p.width,  p.height,          p.reference, static_cast<std::int32_t>(p.windows.size()),
            p.evaluations, p.memory, plan->json.c_str()};
    });
}

void pc_planned_free(pc_planned** plan) {
    if (!plan) return;
    delete *plan;
    *plan = nullptr;
}

pc_status pc_render(pc_session* session, const pc_request* request, const pc_output* output) {
    return guarded([&] {
        need(session, "session");
        const Hold hold(*session);
        const pc_request raw = taken_request(request);
        pc_output out;
        pc_output_init(&out);
        if (output) out = taken(output, out, "output");
        const posecrafter::Request wanted = request_of(raw);
        wanted.check();
        const posecrafter::Bundle& bundle = session->session.bundle();
        const auto frames = std::size_t(wanted.frames);
        need_bytes("output.frames", out.frames, out.frames_bytes, frames * picture_bytes(bundle));
        need_bytes("output.latents", out.latents, out.latents_bytes, frames * bundle.latent_size() * sizeof(float));
        if (!out.frames && !out.latents && !raw.preview)
            throw Error(Kind::request, "null-argument",
                        "neither output nor a preview callback takes the frames; give one");
        posecrafter::Progress progress;
        if (raw.progress)
            progress = [&](const char* stage, int done, int total) {
                return raw.progress(raw.user, stage, done, total) != 0;
            };
        posecrafter::Preview preview;
        if (raw.preview)
            preview = [&](int first, int count, const std::uint8_t* pictures) {
                return raw.preview(raw.user, first, count, pictures) != 0;
            };
        session->session.render(wanted, {out.frames, out.latents}, progress, preview);
    });
}

pc_status pc_draw(pc_session* session, const pc_request* request, std::uint8_t* images, std::size_t bytes) {
    return guarded([&] {
        need(session, "session");
        need(images, "images");
        const Hold hold(*session);
        const posecrafter::Request wanted = request_of(taken_request(request));
        wanted.check();
        if (!wanted.poses)
            throw Error(Kind::request, "poses-empty", "the request has no poses to draw; give key points");
        const posecrafter::Bundle& bundle = session->session.bundle();
        need_bytes("images", images, bytes, std::size_t(wanted.frames) * picture_bytes(bundle));
        const posecrafter::Track track = wanted.poses->framed(bundle.manifest.width, bundle.manifest.height);
        const auto maps = posecrafter::draw_poses(track, bundle.manifest.pose_style);
        std::copy(maps.begin(), maps.end(), images);
    });
}
