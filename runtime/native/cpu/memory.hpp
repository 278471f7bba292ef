// Float memory that begins at a cache line: kept arrays, and an arena whose blocks are used again.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace posecrafter::cpu {

struct Free {
    void operator()(float* data) const;
};

/* An array of floats, not initialised. Throws std::bad_alloc. */
using Floats = std::unique_ptr<float[], Free>;
Floats make_floats(std::size_t count);

class Arena;

/* A block of an arena, given back when this goes. */
class Block {
  public:
    Block() = default;
    Block(Block&& other) noexcept;
    Block& operator=(Block&& other) noexcept;
    ~Block();

    float* data() const { return data_; }

  private:
    friend class Arena;
    Block(Arena* arena, float* data, std::size_t index) : arena_(arena), data_(data), index_(index) {}
    Arena* arena_ = nullptr;
    float* data_ = nullptr;
    std::size_t index_ = 0;
};

/* Blocks for what lives within a run. Used from one thread; outlives its blocks. */
class Arena {
  public:
    /* counting: its blocks have no memory, data() is nullptr. */
    explicit Arena(bool counting = false) : counting_(counting) {}
    /* The smallest idle block that fits and is not twice too large, or a new one. */
    Block take(std::size_t count);
    /* Let go of idle blocks: what comes next has other sizes. */
    void trim();
    /* Floats that its blocks, idle ones among them, held at most. */
    std::size_t most() const { return most_; }

  private:
    friend class Block;
    struct Slot {
        Floats data;
        std::size_t size = 0;  // 0: none
        bool idle = false;
    };
    bool counting_;
    std::size_t held_ = 0, most_ = 0;
    std::vector<Slot> slots_;
};

}  // namespace posecrafter::cpu
