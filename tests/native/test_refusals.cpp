// Bad input at the C boundary: one stable code each, and nothing else happens.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>

#include "check.hpp"
#include "small_bundle.hpp"

namespace {

struct Fixture {
    SmallBundle bundle;
    pc_options options{};
    pc_session* session = nullptr;
    std::vector<float> points = moving_person(3);
    std::vector<std::uint8_t> frames = std::vector<std::uint8_t>(3 * 64 * 64 * 3);

    Fixture() {
        pc_options_init(&options);
        options.engine = FAKE_ENGINE;
        WELL(pc_open(bundle.path().c_str(), &options, &session));
    }
    ~Fixture() { pc_close(&session); }

    pc_request request() {
        pc_request out;
        pc_request_init(&out);
        out.poses = {3, 64, 64, points.data()};
        return out;
    }
    pc_output output() {
        pc_output out;
        pc_output_init(&out);
        out.frames = frames.data();
        out.frames_bytes = frames.size();
        return out;
    }
};

void null_pointers(Fixture& f) {
    pc_request request = f.request();
    pc_output output = f.output();
    pc_session* none = nullptr;
    pc_poses* poses = nullptr;
    pc_planned* plan = nullptr;
    pc_key_points view{};
    pc_plan_summary summary{};
    pc_description about;
    pc_description_init(&about);
    REFUSED("null-argument", pc_open(nullptr, &f.options, &none));
    REFUSED("null-argument", pc_open(f.bundle.path().c_str(), &f.options, nullptr));
    REFUSED("null-argument", pc_describe(nullptr, &about));
    REFUSED("null-argument", pc_describe(f.session, nullptr));
    REFUSED("null-argument", pc_load_person(nullptr, "somebody"));
    REFUSED("null-argument", pc_unload_person(nullptr, "somebody"));
    REFUSED("null-argument", pc_plan(nullptr, &request, &plan));
    REFUSED("null-argument", pc_plan(f.session, nullptr, &plan));
    REFUSED("null-argument", pc_plan(f.session, &request, nullptr));
    REFUSED("null-argument", pc_planned_view(nullptr, &summary));
    REFUSED("null-argument", pc_render(nullptr, &request, &output));
    REFUSED("null-argument", pc_render(f.session, nullptr, &output));
    REFUSED("null-argument", pc_render(f.session, &request, nullptr));
    REFUSED("null-argument", pc_draw(f.session, &request, nullptr, 0));
    REFUSED("null-argument", pc_poses_read(nullptr, 0, 0, &poses));
    REFUSED("null-argument", pc_poses_parse("[]", 2, 0, 0, nullptr));
    REFUSED("null-argument", pc_poses_view(nullptr, &view));
    REFUSED("null-argument", pc_close(nullptr));
    WELL(pc_close(&none));
    pc_poses_free(nullptr);
    pc_poses_free(&poses);
    pc_planned_free(&plan);
    request.poses.points = nullptr;
    REFUSED("null-argument", pc_render(f.session, &request, &output));
}

void small_buffers(Fixture& f) {
    const pc_request request = f.request();
    pc_output output = f.output();
    output.frames_bytes -= 1;
    std::fill(f.frames.begin(), f.frames.end(), std::uint8_t{7});
    REFUSED("buffer-size", pc_render(f.session, &request, &output));
    output = f.output();
    float latents[4];
    output.latents = latents;
    output.latents_bytes = sizeof latents;
    REFUSED("buffer-size", pc_render(f.session, &request, &output));
    REFUSED("buffer-size", pc_draw(f.session, &request, f.frames.data(), f.frames.size() - 1));
    CLAIM(std::all_of(f.frames.begin(), f.frames.end(), [](std::uint8_t value) { return value == 7; }));
}

void ranges(Fixture& f) {
    const pc_output output = f.output();
    const auto refused = [&](const char* code, auto change) {
        pc_request request = f.request();
        change(request);
        pc_planned* plan = nullptr;
        REFUSED(code, pc_render(f.session, &request, &output));
        REFUSED(code, pc_plan(f.session, &request, &plan));
        CLAIM(plan == nullptr);
    };
    refused("steps-range", [](pc_request& r) { r.steps = 0; });
    refused("steps-range", [](pc_request& r) { r.steps = 1001; });
    for (const int count : {0, -2, 5, 1001})
        refused("sampling-steps-range", [=](pc_request& r) { r.sampling_steps = count; });
    refused("inversion-iterations-range", [](pc_request& r) { r.inversion_iterations = 0; });
    refused("inversion-iterations-range", [](pc_request& r) { r.inversion_iterations = 17; });
    refused("keep_mean", [](pc_request& r) { r.keep_mean = 2; });
    refused("guidance-range", [](pc_request& r) { r.guidance = -3; });
    refused("guidance-range", [](pc_request& r) { r.guidance = NAN; });
    refused("control-scale-range", [](pc_request& r) { r.control_scale = 4.5; });
    refused("window-range", [](pc_request& r) { r.window = 9; });
    refused("window-range", [](pc_request& r) { r.window = 0; });
    refused("decode-chunk-range", [](pc_request& r) { r.decode_chunk = 0; });
    refused("memory-budget", [](pc_request& r) { r.memory = 1; });
    refused("inversion", [](pc_request& r) { r.inversion = 3; });
    refused("warp", [](pc_request& r) { r.warp = -1; });
    refused("edit-region", [](pc_request& r) { r.edit = 8; });
    refused("reference-range", [](pc_request& r) { r.reference = 6; });
    refused("reference-range", [](pc_request& r) { r.reference = -2; });
    refused("poses-empty", [](pc_request& r) { r.poses.frames = 0; });
    refused("frames-differ", [](pc_request& r) { r.poses.frames = -1; });
    refused("frames-differ", [](pc_request& r) { r.image_frames = 2; });
    refused("poses-shape", [](pc_request& r) { r.poses.width = 0; });
    refused("poses-shape", [](pc_request& r) { r.poses.frames = INT32_MAX; });
    refused("poses-shape", [&](pc_request& r) {
        r.poses.frames = 0;
        r.control_images = f.frames.data();
        r.image_frames = INT32_MAX;
        r.reference = 0;
    });
    refused("struct-size", [](pc_request& r) { r.struct_size = 0; });
    std::vector<float> nobody(3 * 390, 0.0F), broken = f.points;
    broken[7] = INFINITY;
    refused("no-common-key-points", [&](pc_request& r) { r.poses.points = nobody.data(); });
    refused("poses-not-finite", [&](pc_request& r) { r.poses.points = broken.data(); });
}

// A header with more fields than the library knows: refused where they are used, and else as before.
void newer_structures(Fixture& f) {
    struct {
        pc_request known;
        std::int64_t unknown;
    } newer{f.request(), 0};
    newer.known.struct_size = sizeof newer;
    const pc_output output = f.output();
    WELL(pc_render(f.session, &newer.known, &output));
    newer.unknown = 1;
    REFUSED("struct-size", pc_render(f.session, &newer.known, &output));
    newer.unknown = 0, newer.known.reserved = 1;
    REFUSED("struct-size", pc_render(f.session, &newer.known, &output));
}

// A call from inside a callback meets the busy session, as one from another thread would.
void calls_from_inside(Fixture& f) {
    pc_request request = f.request();
    request.user = &f;
    request.progress = [](void* user, const char*, std::int32_t, std::int32_t) {
        auto& fixture = *static_cast<Fixture*>(user);
        pc_planned* plan = nullptr;
        const pc_request inner = fixture.request();
        REFUSED("session-busy", pc_plan(fixture.session, &inner, &plan));
        REFUSED("session-busy", pc_load_person(fixture.session, nullptr));
        REFUSED("session-busy", pc_unload_person(fixture.session, "somebody"));
        REFUSED("session-busy", pc_close(&fixture.session));
        return 0;
    };
    const pc_output output = f.output();
    WELL(pc_render(f.session, &request, &output));
}

void engines(Fixture& f) {
    pc_session* session = nullptr;
    const auto refused = [&](const char* code, const char* engine, const char* library, const char* device) {
        pc_options options = f.options;
        options.engine = engine;
        options.engine_library = library;
        options.device = device;
        REFUSED(code, pc_open(f.bundle.path().c_str(), &options, &session));
        CLAIM(session == nullptr);
    };
    refused("engine-unknown", "abacus", nullptr, nullptr);
    refused("engine-missing", "/nowhere/engine.so", nullptr, nullptr);
    refused("engine-version", OLD_ONNXRUNTIME, nullptr, nullptr);
    refused("engine-version", OLD_MODULE, nullptr, nullptr);
    refused("engine-missing", "onnxruntime", "/nowhere/libonnxruntime.so", nullptr);
    refused("engine-missing", "onnxruntime", FAKE_ENGINE, nullptr);
    refused("engine-version", "onnxruntime", OLD_ONNXRUNTIME, nullptr);
    refused("engine-device", "onnxruntime", OLD_ONNXRUNTIME, "abacus");
    refused("engine-missing", "openvino", "/nowhere/libopenvino_c.so", nullptr);
    if (HAS_OPENVINO) refused("engine-version", "openvino", OLD_ONNXRUNTIME, nullptr);
    if (HAS_OPENVINO) refused("engine-device", "openvino", OLD_ONNXRUNTIME, "cuda");
    refused("engine-load", "native", nullptr, nullptr);  // the bundle has no layers
    CLAIM(std::strstr(pc_last_error_message(), "export it again, or take onnxruntime") != nullptr);
    pc_options options = f.options;
    options.engine = "onnxruntime";
    options.precision = "bf16";
    REFUSED("engine-precision", pc_open(f.bundle.path().c_str(), &options, &session));
    options = f.options;
    options.threads = -1;
    REFUSED("threads-range", pc_open(f.bundle.path().c_str(), &options, &session));
}

void closed_sessions(Fixture& f) {
    const pc_request request = f.request();
    const pc_output output = f.output();
    REFUSED("bundle-merged", pc_load_person(f.session, "somebody"));
    REFUSED("null-argument", pc_unload_person(f.session, nullptr));
    WELL(pc_load_person(f.session, nullptr));  // its own person is the one it renders anyway
    WELL(pc_close(&f.session));
    CLAIM(f.session == nullptr);
    REFUSED("null-argument", pc_render(f.session, &request, &output));
    WELL(pc_close(&f.session));
}

void altered_bundles() {
    const SmallBundle bundle;
    pc_options options;
    pc_options_init(&options);
    options.engine = FAKE_ENGINE;
    pc_session* session = nullptr;
    std::ofstream(bundle.folder() / "graphs/denoiser.onnx", std::ios::app) << "x";
    REFUSED("bundle-hash", pc_open(bundle.path().c_str(), &options, &session));
    std::filesystem::remove(bundle.folder() / "graphs/denoiser.onnx");
    REFUSED("bundle-file-missing", pc_open(bundle.path().c_str(), &options, &session));
    std::ofstream(bundle.folder() / "manifest.json") << "{";
    REFUSED("bundle-manifest", pc_open(bundle.path().c_str(), &options, &session));
    std::filesystem::remove(bundle.folder() / "manifest.json");
    REFUSED("bundle-missing", pc_open(bundle.path().c_str(), &options, &session));
    CLAIM(session == nullptr);
}

}  // namespace

int main() {
    Fixture f;
    null_pointers(f);
    small_buffers(f);
    ranges(f);
    newer_structures(f);
    calls_from_inside(f);
    engines(f);
    closed_sessions(f);
    altered_bundles();
    CLAIM(std::strlen(pc_version()) >= 5);
    return failures;
}
