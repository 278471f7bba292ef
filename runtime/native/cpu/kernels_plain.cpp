// What every processor has that the compiler builds for; of 64-bit ARM that is NEON.
#include "kernels.hpp"

#define PC_LANES 4
#if defined(__aarch64__)
#define PC_NAME "neon"
#else
#define PC_NAME "plain"
#endif

namespace posecrafter::cpu::plain {
#include "table.inl"
}  // namespace posecrafter::cpu::plain
