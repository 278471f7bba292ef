#include "memory.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

namespace posecrafter::cpu {

namespace {
constexpr std::size_t kLine = 64;
}

void Free::operator()(float* data) const {
    std::free(data);
}

Floats make_floats(std::size_t count) {
    if (count > SIZE_MAX / 2 / sizeof(float)) throw std::bad_alloc();
    const std::size_t bytes = (count * sizeof(float) + kLine - 1) / kLine * kLine;
    void* data = std::aligned_alloc(kLine, bytes ? bytes : kLine);
    if (!data) throw std::bad_alloc();
    return Floats(static_cast<float*>(data));
}

Block::Block(Block&& other) noexcept
    : arena_(std::exchange(other.arena_, nullptr)), data_(std::exchange(other.data_, nullptr)), index_(other.index_) {}

Block& Block::operator=(Block&& other) noexcept {
    std::swap(arena_, other.arena_);
    std::swap(data_, other.data_);
    std::swap(index_, other.index_);
    return *this;
}

Block::~Block() {
    if (arena_) arena_->slots_[index_].idle = true;
}

Block Arena::take(std::size_t count) {
    count = std::max<std::size_t>(count, 1);
    std::size_t best = slots_.size(), empty = best;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
        const Slot& slot = slots_[i];
        if (slot.size == 0)
            empty = i;
        else if (slot.idle && slot.size >= count && slot.size <= 2 * count &&
                 (best == slots_.size() || slot.size < slots_[best].size))
            best = i;
    }
    if (best == slots_.size()) {
        best = empty;
        if (best == slots_.size()) slots_.emplace_back();
        slots_[best] = Slot{counting_ ? nullptr : make_floats(count), count, true};
        most_ = std::max(most_, held_ += count);
    }
    slots_[best].idle = false;
    return {this, slots_[best].data.get(), best};
}

void Arena::trim() {
    for (Slot& slot : slots_)
        if (slot.idle) held_ -= slot.size, slot = Slot{};
}

}  // namespace posecrafter::cpu
