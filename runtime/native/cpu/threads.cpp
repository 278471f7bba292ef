#include "threads.hpp"

#include <utility>

namespace posecrafter::cpu {

namespace {

// Pauses before a thread sleeps, some 25 us: as long as the next layer is away. Where other work wants the cores longer
// ones only take them from it: on two busy cores 20000 made a step of two frames four times as long.
constexpr int kSpins = 1000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

Threads::Threads(int count) {
    try {
        for (int thread = 1; thread < count; ++thread) workers_.emplace_back([this, thread] { work(thread); });
    } catch (...) {
        stop();
        throw;
    }
}

Threads::~Threads() {
    stop();
}

void Threads::stop() {
    stop_ = true;
    round_.fetch_add(1);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Threads::run(int tasks, const void* context, Call call) {
    if (workers_.empty() || tasks < 2) {
        for (int index = 0; index < tasks; ++index) call(context, index, 0);
        return;
    }
    tasks_ = tasks, context_ = context, call_ = call;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    round_.fetch_add(1);
    round_.notify_all();
    take(0);
    for (int spins = 0, left; (left = busy_.load(std::memory_order_acquire)) != 0;) {
        if (++spins < kSpins)
            pause();
        else
            busy_.wait(left);
    }
    if (failed_.exchange(false)) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Threads::work(int thread) {
    unsigned seen = 0;
    while (true) {
        for (int spins = 0; round_.load(std::memory_order_acquire) == seen;) {
            if (++spins < kSpins)
                pause();
            else
                round_.wait(seen);
        }
        ++seen;
        if (stop_) return;
        take(thread);
        if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_all();
    }
}

void Threads::take(int thread) noexcept {
    try {
        for (int index; (index = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;)
            call_(context_, index, thread);
    } catch (...) {
        next_.store(tasks_, std::memory_order_relaxed);
        if (!failed_.exchange(true)) failure_ = std::current_exception();
    }
}

}  // namespace posecrafter::cpu
