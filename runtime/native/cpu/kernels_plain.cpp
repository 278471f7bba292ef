#include "kernels.hpp"

#define PC_LANES 4
#define PC_NAME "plain"

namespace posecrafter::cpu::plain {
#include "table.inl"
}  // namespace posecrafter::cpu::plain
