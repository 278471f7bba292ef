#if defined(__x86_64__)
#include "kernels.hpp"

#define PC_LANES 16
#define PC_NAME "avx512"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#endif

namespace posecrafter::cpu::avx512 {
#include "table.inl"
}  // namespace posecrafter::cpu::avx512

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
