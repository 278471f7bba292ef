// What every engine's module is: engine.h's table of functions over one C++ class, with exceptions inside and a filled
// pc_engine_failure at the door. An Engine has
//     static constexpr const char* name
//     explicit Engine(const pc_engine_options&)
//     const char* device() const, const char* variant() const
//     std::unique_ptr<Graph> load(const std::string& path), a Graph has the names of its `inputs` in order, and
//         std::unique_ptr<Tensor> run(names, inputs, output); where it packs a person's weights, also
//         std::unique_ptr<Tensor> pack(weights, count)
//     std::unique_ptr<Tensor> upload(type, data, shape), and a Tensor has download(data, count)
//     where it knows what a pass takes, std::uint64_t memory(graphs, pass)
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../core/error.hpp"
#include "engine.h"

namespace posecrafter {

using Shape = std::vector<std::int64_t>;

struct Failure : Error {
    Failure(std::string code, const std::string& message) : Error(Kind::engine, std::move(code), message) {}
};

inline void tell(pc_engine_failure* failure, const char* code, const char* message) noexcept {
    std::snprintf(failure->code, sizeof failure->code, "%s", code);
    std::snprintf(failure->message, sizeof failure->message, "%s", message);
}

// Runs `work`; on an exception fills `failure` and returns an empty value. `code`: for exceptions without one.
template <class Work>
auto guarded(pc_engine_failure* failure, const char* code, Work work) noexcept -> decltype(work()) {
    try {
        return work();
    } catch (const Error& error) {
        tell(failure, error.code().c_str(), error.what());
    } catch (const std::bad_alloc&) {
        tell(failure, "engine-memory", "memory ran out; ask for fewer frames a pass, in a window or a decode_chunk");
    } catch (const std::exception& error) {
        tell(failure, code, error.what());
    } catch (...) {
        tell(failure, code, "unknown error");
    }
    return {};
}

inline std::size_t bytes_of(int type) {
    return type == PC_ENGINE_INT64 ? 8 : type == PC_ENGINE_FLOAT16 ? 2 : 4;
}

// Throws Failure "engine-run" unless a graph returned as many float32 numbers as were expected.
inline void expect_floats(std::size_t found, std::size_t expected) {
    if (found != expected)
        throw Failure("engine-run", "a graph returned " + std::to_string(found) + " numbers of float32, expected " +
                                        std::to_string(expected) + "; export the bundle again");
}

// A Graph's `pack` as the door has it, or nullptr.
template <class Graph>
constexpr auto pack_of() -> decltype(pc_engine_module::pack) {
    if constexpr (requires(Graph& graph, const pc_engine_weight* weights) { graph.pack(weights, std::size_t{}); })
        return
            [](void* graph, const pc_engine_weight* weights, std::size_t count, pc_engine_failure* failure) -> void* {
                return guarded(failure, "engine-load",
                               [&] { return static_cast<Graph*>(graph)->pack(weights, count).release(); });
            };
    return nullptr;
}

// An Engine's `memory` as the door has it, or nullptr.
template <class Engine>
constexpr auto memory_of() -> decltype(pc_engine_module::memory) {
    if constexpr (requires(Engine& engine, const pc_engine_pass& pass) { engine.memory("", pass); })
        return [](void* engine, const char* graphs, const pc_engine_pass* pass,
                  pc_engine_failure* failure) -> std::uint64_t {
            return guarded(failure, "engine-load", [&] { return static_cast<Engine*>(engine)->memory(graphs, *pass); });
        };
    return nullptr;
}

template <class Engine, class Graph, class Tensor>
inline constexpr pc_engine_module module_of{
    .abi = PC_ENGINE_ABI,
    .name = Engine::name,
    .open = [](const pc_engine_options* options, pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-load", [&] { return new Engine(*options); });
    },
    .close = [](void* engine) { delete static_cast<Engine*>(engine); },
    .device = [](void* engine) { return static_cast<const Engine*>(engine)->device(); },
    .variant = [](void* engine) { return static_cast<const Engine*>(engine)->variant(); },
    .load = [](void* engine, const char* path, pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-load", [&] { return static_cast<Engine*>(engine)->load(path).release(); });
    },
    .unload = [](void* graph) { delete static_cast<Graph*>(graph); },
    .input = [](void* graph, std::size_t index) -> const char* {
        const auto& inputs = static_cast<const Graph*>(graph)->inputs;
        return index < inputs.size() ? inputs[index].c_str() : nullptr;
    },
    .upload = [](void* engine, int type, const void* data, const std::int64_t* shape, std::size_t rank,
                 pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-memory", [&] {
            return static_cast<Engine*>(engine)->upload(type, data, Shape(shape, shape + rank)).release();
        });
    },
    .pack = pack_of<Graph>(),
    .run = [](void* graph, const char* const* names, void* const* inputs, std::size_t count, const char* output,
              pc_engine_failure* failure) -> void* {
        return guarded(failure, "engine-run", [&] {
            std::vector<Tensor*> tensors;
            for (std::size_t i = 0; i < count; ++i) tensors.push_back(static_cast<Tensor*>(inputs[i]));
            return static_cast<Graph*>(graph)->run(names, tensors, output).release();
        });
    },
    .download = [](void*, void* tensor, float* data, std::size_t count, pc_engine_failure* failure) -> int {
        return guarded(failure, "engine-run",
                       [&] { return static_cast<const Tensor*>(tensor)->download(data, count), 1; });
    },
    .release = [](void* tensor) { delete static_cast<Tensor*>(tensor); },
    .memory = memory_of<Engine>(),
};

}  // namespace posecrafter

// The module's one symbol.
#define PC_ENGINE_MODULE(Engine, Graph, Tensor)                                                       \
    extern "C" __attribute__((visibility("default"))) const pc_engine_module* pc_engine_module_v1() { \
        return &posecrafter::module_of<Engine, Graph, Tensor>;                                        \
    }
