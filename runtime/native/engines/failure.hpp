// What the modules share: exceptions inside, a filled pc_engine_failure at the door.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine.h"

namespace posecrafter {

class Failure : public std::runtime_error {
  public:
    Failure(std::string code, const std::string& message) : std::runtime_error(message), code(std::move(code)) {}
    std::string code;
};

// Runs `work`; on an exception fills `failure` and returns an empty value. `code`: for exceptions without one.
template <class Work>
auto guarded(pc_engine_failure* failure, const char* code, Work work) noexcept -> decltype(work()) {
    const char* what = "unknown error";
    try {
        return work();
    } catch (const Failure& error) {
        std::snprintf(failure->code, sizeof failure->code, "%s", error.code.c_str());
        std::snprintf(failure->message, sizeof failure->message, "%s", error.what());
        return {};
    } catch (const std::exception& error) {
        std::snprintf(failure->message, sizeof failure->message, "%s", error.what());
    } catch (...) {
        std::snprintf(failure->message, sizeof failure->message, "%s", what);
    }
    std::snprintf(failure->code, sizeof failure->code, "%s", code);
    return {};
}

}  // namespace posecrafter
