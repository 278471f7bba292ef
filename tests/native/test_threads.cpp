// Four threads, each with its own session, render what one thread renders; one session among four is never shared.
#include <atomic>
#include <posecrafter/posecrafter.hpp>
#include <thread>

#include "check.hpp"
#include "small_bundle.hpp"

namespace {

posecrafter::Video render(posecrafter::Session& session, int frames) {
    const auto points = moving_person(frames);
    posecrafter::Request request;
    request.poses = {frames, 64, 64, points.data()};
    return session.render(request);
}

// Another thread that comes while a call runs is refused, with a code of its own; the call goes on.
void a_second_thread_is_refused(posecrafter::Session& session) {
    const auto points = moving_person(2);
    posecrafter::Request request;
    request.poses = {2, 64, 64, points.data()};
    const auto expected = session.render(request).data;
    struct Place {
        pc_session* session;
        const pc_request* request;
    } place{session.get(), &request};
    posecrafter::Request watched = request;
    watched.user = &place;
    watched.progress = [](void* user, const char*, std::int32_t, std::int32_t) {
        std::thread([&place = *static_cast<Place*>(user)] {
            pc_planned* plan = nullptr;
            REFUSED("session-busy", pc_plan(place.session, place.request, &plan));
        }).join();
        return 0;
    };
    CLAIM(session.render(watched).data == expected);
    CLAIM(pc_last_error_code()[0] == '\0');
}

// A session belongs to no thread: opened in one, it renders in another and is closed in a third.
void a_session_goes_from_thread_to_thread(const std::string& bundle, const pc_options& options) {
    pc_session* session = nullptr;
    std::thread([&] { WELL(pc_open(bundle.c_str(), &options, &session)); }).join();
    std::thread([&] {
        const auto points = moving_person(2);
        std::vector<std::uint8_t> frames(2 * 64 * 64 * 3);
        pc_request request;
        pc_request_init(&request);
        request.poses = {2, 64, 64, points.data()};
        pc_output output;
        pc_output_init(&output);
        output.frames = frames.data();
        output.frames_bytes = frames.size();
        WELL(pc_render(session, &request, &output));
    }).join();
    std::thread([&] { WELL(pc_close(&session)); }).join();
    CLAIM(session == nullptr);
}

}  // namespace

int main() {
    const SmallBundle bundle;
    posecrafter::Options options;
    options.engine = FAKE_ENGINE;
    posecrafter::Session alone(bundle.path(), options);
    a_second_thread_is_refused(alone);
    a_session_goes_from_thread_to_thread(bundle.path(), options);
    std::vector<std::vector<std::uint8_t>> expected;
    for (int frames = 1; frames <= 4; ++frames) expected.push_back(render(alone, frames * 4).data);

    std::atomic<int> wrong{0}, refused{0}, rendered{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < 4; ++number)
        threads.emplace_back([&, number] {
            posecrafter::Session own(bundle.path(), options);
            for (int round = 0; round < 5; ++round) {
                if (render(own, (number + 1) * 4).data != expected[std::size_t(number)]) ++wrong;
                try {
                    if (render(alone, 4).data != expected[0]) ++wrong;
                    ++rendered;
                } catch (const posecrafter::Failed& error) {
                    // The code is this thread's own, whatever fails elsewhere meanwhile.
                    error.code() == "session-busy" ? ++refused : ++wrong;
                }
            }
        });
    for (std::thread& thread : threads) thread.join();
    CLAIM(wrong == 0);
    CLAIM(rendered + refused == 20 && rendered > 0);
    return failures;
}
