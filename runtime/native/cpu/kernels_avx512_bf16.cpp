#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.hpp"

#define PC_BF16
#define PC_LANES 16
#define PC_NAME "avx512 bf16"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")
#endif

namespace posecrafter::cpu::avx512_bf16 {
#include "table.inl"
}  // namespace posecrafter::cpu::avx512_bf16

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
