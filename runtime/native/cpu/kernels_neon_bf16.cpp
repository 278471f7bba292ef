#include "kernels.hpp"

#if defined(PC_NEON_BF16)
#include <arm_neon.h>

#define PC_BF16
#define PC_LANES 4
#define PC_NAME "neon bf16"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+bf16")
#endif

namespace posecrafter::cpu::neon_bf16 {
#include "table.inl"
}  // namespace posecrafter::cpu::neon_bf16

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
