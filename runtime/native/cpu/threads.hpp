// Threads that wait for the next range to share out. One caller at a time.
//
// A call waits for its tasks, not for the threads: one that the machine lets run late finds its work done.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace posecrafter::cpu {

class Threads {
  public:
    /* The caller is one of them. Throws std::system_error where there are no more to be had. */
    explicit Threads(int count);
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return static_cast<int>(workers_.size()) + 1; }

    /* body(index, thread) for every index in 0..tasks, each once, in no order; returns when all are done. Throws what
     * one of them threw, when none runs any more; then some may not have been begun. */
    template <class Body>
    void share(int tasks, const Body& body) {
        run(tasks, &body,
            [](const void* context, int index, int thread) { (*static_cast<const Body*>(context))(index, thread); });
    }

  private:
    using Call = void (*)(const void* context, int index, int thread);
    void run(int tasks, const void* context, Call call);
    void work(int thread);
    void take(int thread) noexcept;
    void stop();

    std::vector<std::thread> workers_;
    std::atomic<unsigned> round_{0};
    std::atomic<std::uint64_t> tasks_{0};  // see threads.cpp
    std::atomic<int> left_{0};             // tasks that are not done
    std::atomic<bool> stop_{false}, failed_{false};
    std::exception_ptr failure_;  // the first
    const void* context_ = nullptr;
    Call call_ = nullptr;
};

}  // namespace posecrafter::cpu
