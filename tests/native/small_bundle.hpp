// A bundle made up on the spot for the fake engine: 64x64, 6 training frames, at most 9 frames a pass; a shared one
// also holds the packs of "ann" and "bob", with 5 training frames each and weights of their own.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

// Removed when it goes out of scope.
class SmallBundle {
  public:
    enum class Kind { merged, shared };

    explicit SmallBundle(Kind kind = Kind::merged);
    SmallBundle(const SmallBundle&) = delete;
    SmallBundle& operator=(const SmallBundle&) = delete;
    ~SmallBundle();

    std::string path() const { return folder_.string(); }
    const std::filesystem::path& folder() const { return folder_; }

  private:
    std::filesystem::path folder_;
};

// Key points [frames, 130, 3] of a whole person who moves, on a canvas of 64x64.
std::vector<float> moving_person(int frames);
