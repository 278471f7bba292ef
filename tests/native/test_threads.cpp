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

}  // namespace

int main() {
    const SmallBundle bundle;
    posecrafter::Options options;
    options.engine = FAKE_ENGINE;
    posecrafter::Session alone(bundle.path(), options);
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
