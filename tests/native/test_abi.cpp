// What a host does all day: open, plan, draw, render, watch, cancel, close.
#include <cstring>
#include <posecrafter/posecrafter.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

#include "check.hpp"
#include "small_bundle.hpp"

namespace {

posecrafter::Options fake(const char* device = nullptr) {
    posecrafter::Options options;
    options.engine = FAKE_ENGINE;
    options.device = device;
    return options;
}

posecrafter::Request request_for(const std::vector<float>& points) {
    posecrafter::Request request;
    request.poses = {static_cast<std::int32_t>(points.size() / 390), 64, 64, points.data()};
    return request;
}

void a_session_tells_what_it_is(posecrafter::Session& session) {
    const pc_description about = session.description();
    CLAIM(about.width == 64 && about.height == 64 && about.latent_channels == 4 && about.latent_factor == 8);
    CLAIM(about.text_tokens == 5 && about.text_width == 6 && about.training_frames == 6 && about.window == 8);
    CLAIM(std::string(about.engine) == "fake" && std::string(about.prompt) == "a person" && about.fps == 25.0);
}

// Frames 0.. of a render, by windows and chunks, are those of the preview; a NULL output is then enough.
struct Seen {
    std::vector<std::uint8_t> frames;
    int next = 0;
};

void previews_are_the_frames(posecrafter::Session& session) {
    const auto points = moving_person(17);
    posecrafter::Request request = request_for(points);
    request.decode_chunk = 3;
    const posecrafter::Video video = session.render(request);
    CLAIM(video.frames == 17 && video.data.size() == 17 * 64 * 64 * 3);
    Seen seen;
    request.user = &seen;
    request.preview = [](void* user, std::int32_t first, std::int32_t count, const std::uint8_t* frames) {
        auto& all = *static_cast<Seen*>(user);
        CLAIM(first == all.next);
        all.next += count;
        all.frames.insert(all.frames.end(), frames, frames + std::size_t(count) * 64 * 64 * 3);
        return 0;
    };
    WELL(pc_render(session.get(), &request, nullptr));
    CLAIM(seen.next == 17 && seen.frames == video.data);
}

void ready_images_render_like_drawn_ones(posecrafter::Session& session) {
    const auto points = moving_person(5);
    posecrafter::Request request = request_for(points);
    const posecrafter::Video drawn = session.draw(request), expected = session.render(request);
    request.control_images = drawn.data.data();
    request.image_frames = 5;
    CLAIM(session.render(request).data == expected.data);
    request.poses.frames = 0;
    REFUSED("reference-missing", pc_render(session.get(), &request, nullptr));
    request.reference = session.plan(request_for(points)).view().reference;
    const posecrafter::Video unedited = session.render(request);
    posecrafter::Request plain = request_for(points);
    plain.edit = 0;
    CLAIM(unedited.data == session.render(plain).data);
}

void a_given_prompt_changes_the_picture(posecrafter::Session& session) {
    const auto points = moving_person(2);
    posecrafter::Request request = request_for(points);
    const auto before = session.render(request).data;
    const std::vector<float> words(30, 0.5F);
    request.prompt = words.data();
    CLAIM(session.render(request).data != before);
    request.prompt = nullptr;
    CLAIM(session.render(request).data == before);
}

// Every call of the progress callback is a place to stop; after each stop the session renders as before.
struct Countdown {
    int left;
};

void cancelling_at_any_step_leaves_a_whole_session(const std::string& bundle) {
    const auto points = moving_person(10);
    posecrafter::Request request = request_for(points);
    posecrafter::Session session(bundle, fake());
    const auto expected = session.render(request).data;
    request.progress = [](void* user, const char*, std::int32_t, std::int32_t) {
        return int(static_cast<Countdown*>(user)->left-- == 0);
    };
    std::vector<std::uint8_t> frames(expected.size());
    pc_output output;
    pc_output_init(&output);
    output.frames = frames.data();
    output.frames_bytes = frames.size();
    int stops = 0;
    for (;; ++stops) {
        Countdown countdown{stops};
        request.user = &countdown;
        posecrafter::Session fresh(bundle, fake());
        if (pc_render(fresh.get(), &request, &output) == PC_OK) break;
        CLAIM(std::string(pc_last_error_code()) == "cancelled");
        countdown.left = 1000;
        WELL(pc_render(fresh.get(), &request, &output));
        CLAIM(frames == expected);
    }
    // Of the reference 5 calls; of each of the two windows 5 of sampling and 2 of decoding.
    CLAIM(stops == 5 + 2 * (5 + 2));
}

// So is every preview, of which each window has two.
void cancelling_at_any_preview_leaves_a_whole_session(posecrafter::Session& session) {
    const auto points = moving_person(10);
    posecrafter::Request request = request_for(points);
    request.decode_chunk = 3;
    const auto expected = session.render(request).data;
    request.preview = [](void* user, std::int32_t, std::int32_t, const std::uint8_t*) {
        return int(static_cast<Countdown*>(user)->left-- == 0);
    };
    for (int stops = 0; stops <= 4; ++stops) {
        Countdown countdown{stops};
        request.user = &countdown;
        if (stops == 4)
            WELL(pc_render(session.get(), &request, nullptr));
        else
            REFUSED("cancelled", pc_render(session.get(), &request, nullptr));
        posecrafter::Request again = request_for(points);
        again.decode_chunk = 3;
        CLAIM(session.render(again).data == expected);
    }
}

void exceptions_of_callbacks_do_not_cross(posecrafter::Session& session) {
    const auto points = moving_person(2);
    posecrafter::Request request = request_for(points);
    const auto expected = session.render(request).data;
    request.preview = [](void*, std::int32_t, std::int32_t, const std::uint8_t*) { return 0; };
    request.progress = [](void*, const char*, std::int32_t, std::int32_t) -> int { throw 7; };
    REFUSED("internal", pc_render(session.get(), &request, nullptr));
    CLAIM(session.render(request_for(points)).data == expected);
}

void what_watches_a_render_may_be_lambdas_and_throw(posecrafter::Session& session) {
    const auto points = moving_person(17);
    posecrafter::Request request = request_for(points);
    request.decode_chunk = 3;
    const auto expected = session.render(request).data;
    std::vector<std::uint8_t> streamed;
    session.stream(request, [&](std::int32_t, std::int32_t count, const std::uint8_t* frames) {
        streamed.insert(streamed.end(), frames, frames + std::size_t(count) * 64 * 64 * 3);
        return true;
    });
    CLAIM(streamed == expected);
    int told = 0;
    const auto count = [&](std::string_view stage, std::int32_t done, std::int32_t total) {
        CLAIM(!stage.empty() && done <= total);
        return ++told > 0;
    };
    CLAIM(session.render(request, count).data == expected && told > 17);
    std::string code, thrown;
    try {
        session.render(request, [&](auto, auto, auto) { return false; });
    } catch (const posecrafter::Failed& failed) {
        code = failed.code();
    }
    CLAIM(code == "cancelled");
    try {
        session.stream(request, [](auto, auto, auto) -> bool { throw std::out_of_range("the host's own"); });
    } catch (const std::out_of_range& own) {
        thrown = own.what();
    }
    CLAIM(thrown == "the host's own");
    CLAIM(session.render(request).data == expected);
}

void failing_engines_are_errors(const std::string& bundle) {
    const auto points = moving_person(2);
    const posecrafter::Request request = request_for(points);
    std::vector<std::uint8_t> frames(2 * 64 * 64 * 3);
    pc_output output;
    pc_output_init(&output);
    output.frames = frames.data();
    output.frames_bytes = frames.size();
    for (const auto& [device, code] : {std::pair("nan", "nan-latents"),
                                       {"run", "engine-run"},
                                       {"memory", "engine-memory"},
                                       {"load", "engine-load"}}) {
        posecrafter::Session session(bundle, fake(device));
        REFUSED(code, pc_render(session.get(), &request, &output));
        CLAIM(pc_render(session.get(), &request, &output) == PC_ENGINE_ERROR);
    }
}

}  // namespace

int main() {
    const SmallBundle bundle;
    posecrafter::Session session(bundle.path(), fake());
    a_session_tells_what_it_is(session);
    previews_are_the_frames(session);
    ready_images_render_like_drawn_ones(session);
    a_given_prompt_changes_the_picture(session);
    cancelling_at_any_step_leaves_a_whole_session(bundle.path());
    cancelling_at_any_preview_leaves_a_whole_session(session);
    exceptions_of_callbacks_do_not_cross(session);
    what_watches_a_render_may_be_lambdas_and_throw(session);
    failing_engines_are_errors(bundle.path());
    return failures;
}
