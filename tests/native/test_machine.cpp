// What the CPU engine's layers run on: threads that share out work, memory that is used again; and one graph on both.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>

#include "check.hpp"
#include "cores.hpp"
#include "graphs.hpp"

namespace {

using namespace posecrafter::cpu;

constexpr float kTolerance = 1e-6F;

void every_task_is_done_once(Threads& threads) {
    for (int round = 0; round < 300; ++round) {
        const int tasks = round % 37;
        std::vector<int> done(static_cast<std::size_t>(tasks));  // no atomics: a race is ThreadSanitizer's to find
        std::atomic<bool> known{true};
        threads.share(tasks, [&](int index, int thread) {
            ++done[static_cast<std::size_t>(index)];
            if (thread < 0 || thread >= threads.count()) known = false;
        });
        CLAIM(known && std::all_of(done.begin(), done.end(), [](int times) { return times == 1; }));
    }
}

// Rounds so far apart that the threads have gone to sleep.
void sleepers_wake_up(Threads& threads) {
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        std::atomic<int> done{0};
        threads.share(50, [&](int, int) { ++done; });
        CLAIM(done == 50);
    }
}

void what_a_task_throws_comes_out(Threads& threads) {
    for (int round = 0; round < 50; ++round) {
        std::string told;
        try {
            threads.share(64, [&](int index, int) {
                if (index % 16 == 7) throw std::runtime_error("no room");
            });
        } catch (const std::runtime_error& error) {
            told = error.what();
        }
        CLAIM(told == "no room");
    }
    every_task_is_done_once(threads);
}

// Blocks given back in any order never overlap while they live, and are used again.
void blocks_are_used_again() {
    Arena arena;
    std::vector<Block> blocks;
    for (int round = 0; round < 500; ++round) {
        const std::size_t count = static_cast<std::size_t>(1 + round * 7919 % 1000);
        blocks.push_back(arena.take(count));
        CLAIM(reinterpret_cast<std::uintptr_t>(blocks.back().data()) % 64 == 0);
        std::fill_n(blocks.back().data(), count, static_cast<float>(round));
        if (blocks.size() > 5) {
            const auto old = blocks.begin() + round % 5;
            const float held = old->data()[0];
            CLAIM(held >= 0 && held < static_cast<float>(round));
            blocks.erase(old);
        }
        if (round % 100 == 99) arena.trim();
    }
    blocks.clear();
    arena.trim();
    const float* place = arena.take(100).data();  // given back at once
    CLAIM(arena.take(60).data() == place);
    CLAIM(arena.take(40).data() != place);  // less than half of it
    try {
        arena.take(SIZE_MAX / 4);
        claim(false, "there is not so much memory", __LINE__);
    } catch (const std::bad_alloc&) {
    }
}

std::vector<float> features(int threads, int frames, int high, int wide) {
    Machine machine(threads, false);
    const Layers layers(LAYERS "/pose-encoder");
    const auto graph = make_graph(machine, layers);
    std::vector<float> maps(static_cast<std::size_t>(frames * 3 * high * wide));
    for (std::size_t i = 0; i < maps.size(); ++i) maps[i] = static_cast<float>(i % 11) / 11;
    std::vector<float> out;
    for (int round = 0; round < 2; ++round) {
        const std::vector<Made> made = graph->run(machine, {{{frames, 3, high, wide}, maps.data(), false}});
        CLAIM(made.size() == 1 && made[0].name == "pose_features");
        const auto& sizes = made[0].sizes;
        CLAIM((sizes == std::vector<int>{frames, 5, (high + 1) / 2, (wide + 1) / 2}));
        const std::size_t count = std::accumulate(sizes.begin(), sizes.end(), std::size_t{1},
                                                  [](std::size_t all, int size) { return all * std::size_t(size); });
        const std::vector<float> again(made[0].data.get(), made[0].data.get() + count);
        CLAIM(round == 0 || again == out);
        out = again;
    }
    return out;
}

// Up to which products and sums a compiler takes together: rows are grouped differently.
void a_graphs_numbers_do_not_depend_on_its_threads() {
    for (const auto& [frames, high, wide] : {std::array{1, 1, 1}, {3, 9, 7}, {17, 16, 24}}) {
        const std::vector<float> alone = features(1, frames, high, wide);
        std::vector<std::thread> callers;
        for (const int threads : {2, 3, 4})
            callers.emplace_back([&, threads, frames = frames, high = high, wide = wide] {
                const std::vector<float> shared = features(threads, frames, high, wide);
                for (std::size_t i = 0; i < alone.size(); ++i) CLAIM(std::abs(shared[i] - alone[i]) <= kTolerance);
            });
        for (std::thread& caller : callers) caller.join();
    }
}

Layers with(const Layers& layers, const std::vector<float>& own) {
    return layers.with({{"blocks.0.weight", {4, 4, 3, 3}, own.data(), false},
                        {"blocks.0.bias", {4}, own.data(), false},
                        {"of no layer", {1}, nullptr, true}});
}

// What is nobody's own is packed once for all people; what is a person's, for each.
void people_share_what_is_not_theirs() {
    const Layers layers(LAYERS "/a-persons-layer");
    CLAIM(layers.shared() && !Layers(LAYERS "/pose-encoder").shared());
    const std::vector<float> ann(144, 0.5F), bob(144, 2.0F);
    const Layers of_ann = with(layers, ann), of_bob = with(layers, bob);
    int packed = 0;
    const auto pack = [&](const Layers& own, const std::string& name) {
        return own.weights({name}, [&] {
            ++packed;
            return Weights{own.tensor(name + ".weight").floats(), nullptr};
        });
    };
    CLAIM(pack(of_ann, "conv_in") == pack(of_bob, "conv_in") && packed == 1);
    const auto anns = pack(of_ann, "blocks.0"), bobs = pack(of_bob, "blocks.0");
    CLAIM(packed == 3 && anns->packed[0] == 0.5F && bobs->packed[0] == 2.0F);
}

void people_compute_with_their_own_weights() {
    const Layers layers(LAYERS "/a-persons-layer");
    const std::vector<float> ann(144, 0.5F), bob(144, 2.0F), maps(3 * 8 * 8, 0.25F);
    Machine machine(2, false);
    const auto features = [&](Graph& graph) {
        const Made made = graph.run(machine, {{{1, 3, 8, 8}, maps.data(), false}})[0];
        return std::vector<float>(made.data.get(), made.data.get() + 5 * 4 * 4);
    };
    const auto first = make_graph(machine, with(layers, ann)), second = make_graph(machine, with(layers, bob));
    const std::vector<float> alone = features(*first);
    CLAIM(features(*second) != alone);
    CLAIM(features(*first) == alone);
    const auto refused = [&](const std::vector<Weight>& weights) {
        try {
            make_graph(machine, layers.with(weights));
        } catch (const LayersError&) {
            return true;
        }
        return false;
    };
    const Weight weight{"blocks.0.weight", {4, 4, 3, 3}, ann.data(), false},
        bias{"blocks.0.bias", {4}, ann.data(), false};
    CLAIM(!refused({weight, bias}));
    CLAIM(refused({weight}));
    CLAIM(refused({weight, {"blocks.0.bias", {2, 2}, ann.data(), false}}));
    CLAIM(refused({weight, {"blocks.0.bias", {4}, ann.data(), true}}));
    try {
        make_graph(machine, layers);
        claim(false, "a graph without its person was made", __LINE__);
    } catch (const LayersError&) {
    }
}

// A graph refuses what does not fit, and runs on.
void sizes_that_do_not_fit_are_refused() {
    Machine machine(2, false);
    const auto graph = make_graph(machine, Layers(LAYERS "/pose-encoder"));
    const std::vector<float> maps(3 * 8 * 8);
    const auto refused = [&](std::vector<int> sizes, bool whole) {
        try {
            graph->run(machine, {{std::move(sizes), maps.data(), whole}});
        } catch (const LayersError&) {
            return true;
        }
        return false;
    };
    CLAIM(refused({1, 4, 8, 8}, false));
    CLAIM(refused({3, 8, 8}, false));
    CLAIM(refused({0, 3, 8, 8}, false));
    CLAIM(refused({1, 3, 8, 8}, true));
    CLAIM(refused({1 << 16, 3, 1 << 16, 1 << 16}, false));
    CLAIM(!refused({1, 3, 8, 8}, false));
}

struct ControlGroup {
    std::map<std::string, std::string> files;  // of a file system
    int granted;
};

void a_control_groups_limit_is_told_in_whole_cores() {
    const std::vector<ControlGroup> cases = {
        {{}, 0},
        {{{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "200000 100000\n"}}, 2},
        {{{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "max 100000\n"}}, 0},
        {{{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "10000 100000\n"}}, 1},
        {{{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "what is this\n"}}, 0},
        {{{"proc/self/cgroup", "0::/unseen/group\n"}, {"sys/fs/cgroup/cpu.max", "250000 100000\n"}}, 3},
        {{{"proc/self/cgroup", "0::/pod/container\n"},
          {"sys/fs/cgroup/pod/cpu.max", "200000 100000\n"},
          {"sys/fs/cgroup/pod/container/cpu.max", "400000 100000\n"}},
         2},
        {{{"proc/self/cgroup", "9:cpuset:/b\n5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n"},
          {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "250000\n"},
          {"sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"},
          {"sys/fs/cgroup/cpu/b/cpu.cfs_quota_us", "100000\n"},
          {"sys/fs/cgroup/cpu/b/cpu.cfs_period_us", "100000\n"},
          {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
          {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}},
         3},
    };
    std::string root = (std::filesystem::temp_directory_path() / "cgroup-XXXXXX").string();
    CLAIM(mkdtemp(root.data()) != nullptr);
    for (const ControlGroup& one : cases) {
        for (const auto& [name, text] : one.files) {
            std::filesystem::create_directories(std::filesystem::path(root + "/" + name).parent_path());
            std::ofstream(root + "/" + name) << text;
        }
        CLAIM(granted_cores(root) == one.granted);
        std::filesystem::remove_all(root);
    }
    CLAIM(usable_cores() >= 1);
}

}  // namespace

int main() {
    for (const int count : {1, 2, 4}) {
        Threads threads(count);
        every_task_is_done_once(threads);
        sleepers_wake_up(threads);
        what_a_task_throws_comes_out(threads);
    }
    blocks_are_used_again();
    a_control_groups_limit_is_told_in_whole_cores();
    a_graphs_numbers_do_not_depend_on_its_threads();
    people_share_what_is_not_theirs();
    people_compute_with_their_own_weights();
    sizes_that_do_not_fit_are_refused();
    return failures;
}
