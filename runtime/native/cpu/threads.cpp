#include "threads.hpp"

#include <algorithm>
#include <utility>

namespace posecrafter::cpu {

namespace {

// Pauses before a thread sleeps, some 25 us: as long as the next layer is away. Where other work wants the cores longer
// ones only take them from it: on two busy cores 20000 made a step of two frames four times as long.
constexpr int kSpins = 1000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");  // `yield` does nothing on most of them
#endif
}

/* How many tasks there are and which is next, in one word: whoever takes a number knows whether it is a task's. */
constexpr std::uint64_t word(int tasks, int next) {
    return static_cast<std::uint64_t>(tasks) << 32 | static_cast<std::uint64_t>(next);
}

constexpr int all_of(std::uint64_t word) {
    return static_cast<int>(word >> 32);
}

constexpr int next_of(std::uint64_t word) {
    return static_cast<int>(word & 0xffffffff);
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
    context_ = context, call_ = call;
    left_.store(tasks, std::memory_order_relaxed);
    tasks_.store(word(tasks, 0), std::memory_order_release);
    round_.fetch_add(1);
    round_.notify_all();
    take(0);
    for (int spins = 0, left; (left = left_.load(std::memory_order_acquire)) != 0;) {
        if (++spins < kSpins)
            pause();
        else
            left_.wait(left);
    }
    if (failed_.exchange(false)) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Threads::work(int thread) {
    unsigned seen = 0;
    while (true) {
        unsigned round;
        for (int spins = 0; (round = round_.load(std::memory_order_acquire)) == seen;) {
            if (++spins < kSpins)
                pause();
            else
                round_.wait(seen);
        }
        seen = round;
        if (stop_) return;
        take(thread);
    }
}

void Threads::take(int thread) noexcept {
    // Who comes late may find the tasks of a later call, which are as good. A call does not return before each of its
    // tasks is counted, so whoever has one reads that call's context.
    int done = 0, tasks = 0;
    try {
        for (std::uint64_t found;
             (found = tasks_.fetch_add(1, std::memory_order_acquire), tasks = all_of(found), next_of(found) < tasks);) {
            ++done;
            call_(context_, next_of(found), thread);
        }
    } catch (...) {
        if (!failed_.exchange(true)) failure_ = std::current_exception();
        done += std::max(tasks - next_of(tasks_.exchange(word(tasks, tasks))), 0);  // none is begun any more
    }
    if (done != 0 && left_.fetch_sub(done, std::memory_order_acq_rel) == done) left_.notify_all();
}

}  // namespace posecrafter::cpu
