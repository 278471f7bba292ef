// Every error a caller can cause or meet: a kind, a stable code and one line that holds the cure. The codes are
// Python's.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace posecrafter {

enum class Kind { internal, request, bundle, engine, pose };

class Error : public std::runtime_error {
  public:
    Error(Kind kind, std::string code, const std::string& message)
        : std::runtime_error(message), kind_(kind), code_(std::move(code)) {}

    Kind kind() const { return kind_; }
    const std::string& code() const { return code_; }

  private:
    Kind kind_;
    std::string code_;
};

// The parts one after another, as a stream writes them.
template <class... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

}  // namespace posecrafter
