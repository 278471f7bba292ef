#if defined(__x86_64__)
#include "kernels.hpp"

#define PC_LANES 8
#define PC_NAME "avx2"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace posecrafter::cpu::avx2 {
#include "table.inl"
}  // namespace posecrafter::cpu::avx2

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
